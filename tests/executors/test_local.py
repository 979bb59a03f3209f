from __future__ import annotations

import pytest

from evomerge.errors import ConfigError, TaskError
from evomerge.executors.base import Job
from evomerge.executors.local import LocalExecutor
from evomerge.executors.worker import WorkerSpec
from evomerge.trial import TrialState
from tests.executors.probe import Probe


def test_in_order_one_per_collect(pool, trials, tmp_path) -> None:
    executor = LocalExecutor(WorkerSpec(pool, Probe(tmp_path)))
    assert executor.collect() == []
    for trial in trials[:3]:
        executor.submit(Job(trial))
    finished = [executor.collect() for _ in range(3)]
    assert [[t.number for t in f] for f in finished] == [[0], [1], [2]]
    assert all(t.state is TrialState.COMPLETE for f in finished for t in f)
    assert len({f[0].scores.values["loss"] for f in finished}) == 3
    assert set(finished[0][0].scores.seconds) == {"merge", "score"}
    assert executor.collect() == []


def test_scores_do_not_depend_on_what_was_scored_before(pool, trials, tmp_path) -> None:
    a, b = (LocalExecutor(WorkerSpec(pool, Probe(tmp_path))) for _ in range(2))
    for trial in (trials[1], trials[2], trials[0]):
        a.submit(Job(trial))
        last = a.collect()[0]
    b.submit(Job(trials[0]))
    assert last.scores.values == b.collect()[0].scores.values


def test_an_exception_is_a_failed_trial_and_the_next_one_is_fine(pool, trials, tmp_path) -> None:
    deeds = {trials[0].recipe.id: "raise"}
    executor = LocalExecutor(WorkerSpec(pool, Probe(tmp_path, deeds)))
    for trial in trials[:2]:
        executor.submit(Job(trial))
    failed, fine = executor.collect()[0], executor.collect()[0]
    assert failed.state is TrialState.FAILED
    assert failed.scores is None
    assert "Traceback" in failed.error
    assert "seven is not eight" in failed.error
    assert fine.state is TrialState.COMPLETE


def test_warm_up_raises_what_building_raises(pool, tmp_path) -> None:
    executor = LocalExecutor(WorkerSpec(pool, Probe(tmp_path, prepare="error")))
    with pytest.raises(TaskError, match="no such documents"):
        executor.warm_up()


def test_close_drops_what_is_queued(pool, trials, tmp_path) -> None:
    executor = LocalExecutor(WorkerSpec(pool, Probe(tmp_path)))
    executor.submit(Job(trials[0]))
    executor.close()
    assert executor.collect() == []


def test_threads_are_checked(pool, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"executor\.threads"):
        LocalExecutor(WorkerSpec(pool, Probe(tmp_path)), threads=0)
