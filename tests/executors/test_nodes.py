"""Two nodes that have the checkpoints elsewhere: each by its own root, or on its own disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from evomerge.executors.base import Job
from evomerge.executors.ray import RayExecutor
from evomerge.executors.worker import WorkerSpec
from evomerge.experts import ExpertPool
from evomerge.staging import ROOTS
from evomerge.trial import TrialState
from tests.executors.probe import Probe

pytestmark = pytest.mark.slow


class Where(Probe):
    """Also notes from where the live model was loaded."""

    def prepare(self, model, tokenizer) -> None:
        super().prepare(model, tokenizer)
        (self.folder / f"from-{os.getpid()}").write_text(model.config._name_or_path)


@pytest.fixture
def cluster(tmp_path):
    """A head without cores, and two nodes of one core that see /driver elsewhere."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for name in ("one", "two"):
        roots = f"{tmp_path / 'driver'}={tmp_path / name}"
        cluster.add_node(num_cpus=1, env_vars={**os.environ, ROOTS: roots})
    yield cluster
    cluster.shutdown()


@pytest.mark.parametrize("staged", [False, True])
def test_each_node_finds_its_own(cluster, family, trials, tmp_path, staged) -> None:
    import ray

    for name in ("base", "expert_a", "expert_b"):
        for root in ("driver", "one", "two"):
            shutil.copytree(family[name], tmp_path / root / name)
    experts = {n: str(tmp_path / "driver" / f"expert_{n}") for n in "ab"}
    pool = ExpertPool.open(str(tmp_path / "driver" / "base"), experts)
    shutil.rmtree(tmp_path / "driver")  # no node has it
    (tmp_path / "probe").mkdir()
    stage = str(tmp_path / "disk") if staged else None
    executor = RayExecutor(
        WorkerSpec(pool, Where(tmp_path / "probe")), address=cluster.address, workers=2,
        cpus_per_worker=1, stage=stage,
    )  # fmt: skip
    try:
        while sum(s.built for s in executor._slots) < 2:
            executor._wait(1.0)
        for trial in trials[:4]:
            executor.submit(Job(trial))
        found = []
        while len(found) < 4:
            found += executor.collect()
    finally:
        executor.close()
        ray.shutdown()
    assert all(t.state is TrialState.COMPLETE for t in found)
    loaded = {Path(p.read_text()) for p in (tmp_path / "probe").glob("from-*")}
    if staged:
        assert loaded == {tmp_path / "disk" / pool.base.content[:32]}
        assert len(list((tmp_path / "disk").glob("*/.complete"))) == 3
    else:
        assert loaded == {tmp_path / "one" / "base", tmp_path / "two" / "base"}
