"""Every optimizer that has a configuration, ready to be built."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from optimizer_fakes import CODE, MATH

from evomerge.optimizers.base import Problem
from evomerge.resources import resource_folder

CONFIGS = sorted((resource_folder("conf") / "optimizer").glob("*.yaml"))
DIM = 5
SMALL = {"bayesian": {"n_startup": 4}, "map_quadratic": {"n_design": 6}}
"""Settings that bring an expensive driver to its second phase within few trials."""


@dataclasses.dataclass(frozen=True)
class Driver:
    """One ``conf/optimizer/*.yaml`` under test; called, it builds the optimizer.

    Attributes:
        path: The configuration.
        dim: Dimension of the problems that the laws are tested on.
    """

    path: Path
    dim: int

    @property
    def cls(self):
        return get_class(OmegaConf.load(self.path)._target_)

    @property
    def max_dim(self):
        return getattr(self.cls, "max_dim", None)

    @property
    def expensive(self):
        return getattr(self.cls, "expensive", False)

    def n(self, n_trials):
        """So many trials, or an eighth of them (at least 10) where one ask takes long."""
        return max(10, n_trials // 8) if self.expensive else n_trials

    def __call__(
        self,
        *,
        dim=None,
        seed=7,
        objectives=(MATH, CODE),
        start=None,
        scalarisation="mean",
        **settings,
    ):
        """The optimizer, as a study builds it."""
        dim = self.dim if dim is None else dim
        start = np.full(dim, 0.5) if start is None else start
        problem = Problem(dim, seed, tuple(objectives), start, scalarisation)
        small = SMALL.get(self.path.stem, {})
        config = OmegaConf.merge(OmegaConf.load(self.path), small, settings)
        # A partial: Hydra would turn the Objective dataclasses into configuration nodes.
        return instantiate(config, _partial_=True)(problem)


def drivers():
    """Each configuration once; one with a highest dimension once per dimension."""
    for path in CONFIGS:
        max_dim = Driver(path, DIM).max_dim
        if max_dim is None or max_dim >= DIM:
            yield pytest.param(Driver(path, DIM), id=path.stem)
        else:
            for dim in range(1, max_dim + 1):
                yield pytest.param(Driver(path, dim), id=f"{path.stem}_{dim}d")


@pytest.fixture(params=drivers())
def new(request):
    """Builds one optimizer: ``new(dim=..., seed=..., setting=...)``; see :class:`Driver`."""
    return request.param
