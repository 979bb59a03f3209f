from __future__ import annotations

import json
import os

import pytest

from evomerge.cli.run_log import JsonLines, RunLog
from evomerge.errors import ConfigError, TaskError
from evomerge.executors.base import Job
from evomerge.executors.local import LocalExecutor
from evomerge.executors.notes import WORKERS
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


def test_every_job_is_logged_as_plain_data(pool, trials, tmp_path) -> None:
    deeds = {trials[0].recipe.id: "raise"}
    handler = RunLog(tmp_path / "workers.jsonl")
    handler.setFormatter(JsonLines())
    WORKERS.addHandler(handler)
    WORKERS.setLevel("INFO")
    try:
        executor = LocalExecutor(WorkerSpec(pool, Probe(tmp_path, deeds)))
        for trial in trials[:2]:
            executor.submit(Job(trial))
        done = [executor.collect()[0] for _ in range(2)]
    finally:
        WORKERS.removeHandler(handler)
    failed, fine = map(json.loads, (tmp_path / "workers.jsonl").read_text().splitlines())
    assert failed["state"] == "FAILED"
    assert failed["error"] == "ArithmeticError: seven is not eight"
    assert (fine["trial"], fine["split"], fine["attempt"]) == (1, "search", 0)
    assert fine["process"] == os.getpid()
    assert fine["seconds"] == done[1].scores.seconds


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


class Remembered(Probe):
    """A Probe that says what its scores depend on."""

    def scores_depend_on(self, split) -> dict[str, str]:
        return {"probe": str(self.folder), "split": split}


def _run(pool, probe, trial, **settings):
    executor = LocalExecutor(WorkerSpec(pool, probe, **settings))
    executor.submit(Job(trial))
    return executor.collect()[0]


def test_a_recipe_that_was_scored_before_is_not_scored_again(pool, trials, tmp_path) -> None:
    first = _run(pool, Remembered(tmp_path), trials[0])
    again = _run(pool, Remembered(tmp_path), trials[0])
    fresh = _run(pool, Remembered(tmp_path), trials[0], score_cache=False)
    _run(pool, Remembered(tmp_path), trials[0], dtype="bfloat16")  # other weights: evaluated
    n_evaluated = len((tmp_path / trials[0].recipe.id).read_text().split())
    assert n_evaluated == 3  # all but `again`
    assert again.state is TrialState.COMPLETE
    assert not again.scores.seconds
    assert first.scores.values == again.scores.values == fresh.scores.values


def test_what_failed_is_tried_again(pool, trials, tmp_path) -> None:
    deeds = {trials[0].recipe.id: "once-raise"}
    states = [_run(pool, Remembered(tmp_path, deeds), trials[0]).state for _ in range(3)]
    assert states == [TrialState.FAILED, TrialState.COMPLETE, TrialState.COMPLETE]
    assert len((tmp_path / trials[0].recipe.id).read_text().split()) == 2
