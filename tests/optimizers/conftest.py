"""Every optimizer that has a configuration, ready to be built."""

import functools

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from optimizer_fakes import CODE, MATH

from evomerge.optimizers.base import Problem
from evomerge.resources import resource_folder

CONFIGS = sorted((resource_folder("conf") / "optimizer").glob("*.yaml"))


def build(path, *, dim=5, seed=7, objectives=(MATH, CODE), start=None, **settings):
    """The optimizer of one ``conf/optimizer/*.yaml``, as a study builds it."""
    config = OmegaConf.merge(OmegaConf.load(path), settings)
    start = np.full(dim, 0.5) if start is None else start
    # A partial: Hydra would turn the Objective dataclasses into configuration nodes.
    return instantiate(config, _partial_=True)(Problem(dim, seed, tuple(objectives), start))


@pytest.fixture(params=CONFIGS, ids=lambda p: p.stem)
def config(request):
    """Path of one optimizer's configuration."""
    return request.param


@pytest.fixture
def new(config):
    """Builds that optimizer: ``new(dim=..., seed=..., setting=...)``."""
    return functools.partial(build, config)
