from __future__ import annotations

import dataclasses
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import optuna
import pytest

from evomerge.errors import RunFolderError
from evomerge.store import JOURNAL, TrialStore, open_run
from evomerge.trial import Scores, Trial, TrialState
from tests.fakes import AXES, OBJECTIVES, recipe, scores_of

META = {"fingerprint": {"seed": 0, "space": {"method": "x"}}, "n_trials": 5}


def store(folder: Path, **changes) -> TrialStore:
    return TrialStore(folder, OBJECTIVES, {**META, **changes}, AXES)


def trial(number: int, **changes) -> Trial:
    x = np.full(4, number / 10)
    return dataclasses.replace(Trial(number, "search", x, recipe(x.reshape(2, 2))), **changes)


def done(t: Trial) -> Trial:
    return dataclasses.replace(
        t, state=TrialState.COMPLETE, scores=scores_of(t.recipe, t.split), error=None
    )


def assert_same(a: Trial, b: Trial) -> None:
    for field in ("number", "kind", "state", "error", "attempt", "split", "label", "copied_from"):
        assert getattr(a, field) == getattr(b, field), field
    assert a.recipe.id == b.recipe.id
    assert (a.x is None) == (b.x is None)
    if a.x is not None:
        np.testing.assert_array_equal(a.x, b.x)
    assert (a.scores is None) == (b.scores is None)
    if a.scores is not None and b.scores is not None:
        assert a.scores.values == b.scores.values
        assert a.scores.stderr == pytest.approx(b.scores.stderr, nan_ok=True)
        assert a.scores.seconds == b.scores.seconds
        for name in a.scores.values:
            np.testing.assert_array_equal(a.scores.per_example[name], b.scores.per_example[name])


def fill(s: TrialStore) -> list[Trial]:
    """Trials of every kind and state, told out of number order."""
    told = [
        done(trial(1)),
        done(trial(0, kind="reference", label="base", x=None)),
        trial(2, state=TrialState.FAILED, error="Traceback ...\nValueError: no"),
        done(trial(1, kind="final", split="test")),
        done(trial(3)),
    ]
    for t in told:
        s.start(dataclasses.replace(t, state=TrialState.RUNNING, scores=None, error=None))
    for t in told:
        s.append(t)
    copied = dataclasses.replace(done(trial(4)), scores=told[0].scores, copied_from=1)
    s.append(copied)
    s.start(trial(5))
    return [*told, copied, trial(5)]


def test_everything_comes_back_in_told_order(tmp_path) -> None:
    first = store(tmp_path)
    expected = fill(first)
    for found, want in zip(first.load(), expected, strict=True):
        assert_same(found, want)
    first.close()
    second = store(tmp_path)
    for found, want in zip(second.load(), expected, strict=True):
        assert_same(found, want)
    second.close()
    run = open_run(tmp_path)
    assert [t.number for t in run.running] == [5]
    assert len(run.trials) == 6
    assert run.objectives == OBJECTIVES


def test_nan_stderr_and_missing_arrays_survive(tmp_path) -> None:
    s = store(tmp_path)
    scores = Scores({"a": 1.0, "b": 2.0}, {"a": float("nan"), "b": 0.1}, {"a": None, "b": None})
    s.append(dataclasses.replace(trial(0), state=TrialState.COMPLETE, scores=scores))
    (found,) = s.load()
    assert found.scores.per_example == {"a": None, "b": None}
    assert np.isnan(found.scores.stderr["a"])
    s.close()


def test_a_raced_trial_keeps_what_it_was_asked(tmp_path) -> None:
    s = store(tmp_path)
    s.start(trial(0, raced_after=7))
    assert s.load()[0].raced_after == 7
    seen = np.array([0.5, np.nan, 0.25, np.nan], dtype=np.float32)
    scores = Scores({"a": 0.4, "b": -1.0}, {"a": 0.1, "b": 0.2}, {"a": seen, "b": seen}, {}, 4)
    lost = trial(0, raced_after=7, state=TrialState.PRUNED, scores=scores)
    s.append(lost)
    s.close()
    (found,) = open_run(tmp_path).trials
    assert_same(found, lost)
    assert (found.raced_after, found.scores.asked) == (7, 4)
    study = optuna.load_study(study_name="search", storage=_journal(tmp_path))
    assert study.trials[0].state == optuna.trial.TrialState.PRUNED


def test_another_attempt_is_recorded(tmp_path) -> None:
    s = store(tmp_path)
    s.start(trial(0))
    s.start(trial(0, attempt=1))
    (found,) = s.load()
    assert found.attempt == 1
    s.append(done(trial(0, attempt=1)))
    (found,) = s.load()
    assert (found.state, found.attempt) == (TrialState.COMPLETE, 1)
    s.close()


def test_refuses_a_running_trial(tmp_path) -> None:
    s = store(tmp_path)
    with pytest.raises(ValueError, match="RUNNING"):
        s.append(trial(0))
    s.close()


def test_other_configuration(tmp_path) -> None:
    store(tmp_path).close()
    with pytest.raises(
        RunFolderError, match=r"another configuration \(seed differ: seed: 0 there"
    ):
        store(tmp_path, fingerprint={"seed": 1, "space": {"method": "x"}})
    store(tmp_path, n_trials=50).close()  # a budget is not part of the fingerprint
    assert open_run(tmp_path).meta["n_trials"] == 50


def test_second_driver_is_refused(tmp_path) -> None:
    first = store(tmp_path)
    code = textwrap.dedent(f"""
        from pathlib import Path
        from tests.test_store import store
        from evomerge.errors import RunFolderError
        try:
            store(Path({str(tmp_path)!r}))
        except RunFolderError as e:
            print(e)
    """)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "is in use by process" in out.stdout
    first.close()
    store(tmp_path).close()


def test_no_run_there(tmp_path) -> None:
    with pytest.raises(RunFolderError, match="no run folder"):
        open_run(tmp_path)


@pytest.mark.parametrize("from_end", [1, 2, 10, 50, 150, 300, 600, 1000, 2000])
def test_killed_at_any_byte_it_loads(tmp_path, from_end) -> None:
    """What a kill leaves is a prefix of the journal; whatever it holds must load and continue."""
    s = store(tmp_path)
    fill(s)
    s.close()
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-from_end])
    (tmp_path / f"{JOURNAL}.lock").touch()  # the dead writer's lock
    again = store(tmp_path)
    found = again.load()
    finished = [t for t in found if t.finished]
    assert len(finished) <= 6
    again.append(done(trial(9)))
    again.close()
    reread = open_run(tmp_path)
    assert len(reread.trials) == len(finished) + 1
    assert reread.trials[-1].number == 9


def test_every_prefix_of_a_small_journal(tmp_path) -> None:
    s = store(tmp_path / "full")
    s.append(done(trial(0)))
    s.close()
    data = (tmp_path / "full" / JOURNAL).read_bytes()
    for i, size in enumerate(range(0, len(data), max(1, len(data) // 60))):
        folder = tmp_path / f"cut{i}"
        folder.mkdir()
        (folder / JOURNAL).write_bytes(data[:size])
        again = store(folder)
        again.append(done(trial(1)))
        again.close()
        assert open_run(folder).trials[-1].number == 1


def test_result_recorded_but_not_closed_is_finished(tmp_path, monkeypatch) -> None:
    """Killed between the result and the end of the Optuna trial: nothing is evaluated again."""
    s = store(tmp_path)
    s.start(trial(0))
    monkeypatch.setattr(s, "_end", lambda *a: None)
    s.append(done(trial(0)))
    s.close()
    again = store(tmp_path)
    (found,) = again.load()
    assert found.state is TrialState.COMPLETE
    again.close()
    study = optuna.load_study(study_name="search", storage=_journal(tmp_path))
    assert study.trials[0].state == optuna.trial.TrialState.COMPLETE


def test_a_group_is_one_write(tmp_path) -> None:
    """Whatever part of it a kill leaves is a prefix in told order."""
    s = store(tmp_path)
    group = [done(trial(i)) for i in (2, 0, 1)]
    for t in group:
        s.start(trial(t.number))
    before = (tmp_path / JOURNAL).stat().st_size
    s.append(*group)
    s.close()
    data = (tmp_path / JOURNAL).read_bytes()
    for size in range(before, len(data), 97):
        (tmp_path / JOURNAL).write_bytes(data[:size])
        again = store(tmp_path)
        finished = [t for t in again.load() if t.finished]
        again.close()
        assert [t.number for t in finished] == [2, 0, 1][: len(finished)]


def test_a_result_whose_scores_a_power_cut_took_is_cut_off(tmp_path) -> None:
    """Records and scores are synced at the same time: either may come first."""
    s = store(tmp_path)
    for i in range(4):
        s.start(trial(i))
    s.append(done(trial(0)))
    s.append(done(trial(1)), done(trial(2)), done(trial(3)))
    s.close()
    (tmp_path / "scores" / "00002-search.npz").write_bytes(b"")
    again = store(tmp_path)
    found = again.load()
    assert [(t.number, t.finished) for t in found] == [
        (0, True),
        (1, True),
        (2, False),
        (3, False),
    ]
    again.append(done(trial(2)))
    again.start(trial(4))
    again.close()
    for file in (tmp_path / "scores").iterdir():  # copied without its arrays: nothing is cut off
        file.unlink()
    assert [t.number for t in open_run(tmp_path).trials] == [0, 1, 2]
    last = store(tmp_path)
    assert sum(t.finished for t in last.load()) == 3
    last.close()


def test_a_full_disk_leaves_no_half_record(tmp_path, monkeypatch) -> None:
    s = store(tmp_path)
    s.append(done(trial(0)))
    whole = (tmp_path / JOURNAL).read_bytes()
    limit = len(whole) + 300
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for attempt in (lambda: s.start(trial(1)), lambda: s.append(done(trial(1)))):
            with pytest.raises(RunFolderError, match=r"cannot write to .*Free some space"):
                attempt()
            assert (tmp_path / JOURNAL).read_bytes() == whole
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        signal.signal(signal.SIGXFSZ, old)
    s.append(done(trial(1)))
    s.close()
    assert [t.number for t in open_run(tmp_path).trials] == [0, 1]


def test_a_note_taken_while_it_runs_shifts_no_trial(tmp_path) -> None:
    """Optuna's tools may append to the journal of a live run, trials of their own included."""
    s = store(tmp_path)
    s.append(done(trial(0)))
    other = optuna.load_study(study_name="search", storage=_journal(tmp_path))
    other.set_user_attr("note", "promising")
    other._storage.create_new_trial(other._study_id)
    s.start(trial(1))
    s.append(done(trial(1)))
    s.close()
    study = optuna.load_study(study_name="search", storage=_journal(tmp_path))
    assert [t.user_attrs.get("number") for t in study.trials] == [0, None, 1]
    assert study.trials[2].state == optuna.trial.TrialState.COMPLETE
    again = store(tmp_path)
    assert [t.number for t in again.load()] == [0, 1]
    again.close()
    assert len(open_run(tmp_path).trials) == 2


def test_optuna_sees_raw_values_and_real_parameters(tmp_path) -> None:
    s = store(tmp_path)
    fill(s)
    s.close()
    study = optuna.load_study(study_name="search", storage=_journal(tmp_path))
    assert study.metric_names == ["a", "b"]
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    found = next(t for t in study.trials if t.user_attrs["number"] == 3)
    want = scores_of(trial(3).recipe)
    assert found.values == [want.values["a"], -want.values["b"]]
    assert found.params == {name: pytest.approx(0.3) for name, _, _ in AXES}


def _journal(folder: Path):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
