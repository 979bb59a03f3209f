"""optuna-dashboard reads the journal of a run, finished or live, and leaves it alone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from evomerge.executors.base import Job
from evomerge.store import JOURNAL, TrialStore, open_run
from evomerge.trial import Trial, TrialState
from tests.fakes import AXES, OBJECTIVES, BoxSpace, FakeExecutor
from tests.test_study import build, key, run

dashboard = pytest.importorskip("optuna_dashboard")


def _storage(folder: Path):
    """As `optuna-dashboard RUN/journal.log` opens it."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


class Browser:
    """Asks the dashboard's WSGI application, in this process and without a port."""

    def __init__(self, folder: Path) -> None:
        self._app = dashboard.wsgi(_storage(folder))

    def get(self, path: str) -> str:
        route, _, query = path.partition("?")
        answered: list[str] = []
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": route,
            "QUERY_STRING": query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
        }
        body = b"".join(self._app(environ, lambda status, *_: answered.append(status)))
        assert answered == ["200 OK"], (path, answered, body[:500])
        return body.decode()

    def study(self, name: str) -> dict:
        """A study by name, with its trials."""
        (summary,) = [
            s
            for s in json.loads(self.get("/api/studies"))["study_summaries"]
            if s["study_name"] == name
        ]
        return json.loads(self.get(f"/api/studies/{summary['study_id']}?after=0"))


def _scored(trial: Trial) -> Trial:
    executor = FakeExecutor()
    executor.submit(Job(trial))
    return executor.collect()[0]


def test_a_finished_run(tmp_path) -> None:
    trials = run(tmp_path, n_trials=8, optimizer="nsga2", pareto=True)
    browser = Browser(tmp_path)
    assert "<html" in browser.get("/dashboard").lower()
    study = browser.study("search")
    searched = [o for o in OBJECTIVES if o.search]
    assert study["objective_names"] == [o.name for o in searched]
    assert study["directions"] == [o.direction for o in searched]
    assert {s["name"] for s in study["union_search_space"]} == {name for name, _, _ in AXES}
    expected = [t for t in trials if t.split == "search"]
    assert len(study["trials"]) == len(expected)
    for shown, trial in zip(study["trials"], expected, strict=True):
        assert shown["state"] == "Complete"
        raw = [o.sign * trial.scores.values[o.name] for o in searched]
        assert [float(v) for v in shown["values"]] == pytest.approx(raw)
        values = {p["name"]: float(p["param_external_value"]) for p in shown["params"]}
        if trial.x is None:
            assert values == {}
        else:
            at = [low + x * (high - low) for (_, low, high), x in zip(AXES, trial.x, strict=True)]
            assert [values[name] for name, _, _ in AXES] == pytest.approx(at)
    assert study["best_trials"]
    assert len(browser.study("finals")["trials"]) == len(trials) - len(expected)


def test_a_live_run(tmp_path) -> None:
    """While its driver goes on writing: told trials, running ones and a failed one."""
    meta = {"fingerprint": {"seed": 3}, "pareto": False}
    store = TrialStore(tmp_path, OBJECTIVES, meta, AXES)
    space = BoxSpace()
    points = [[0.1 * i, 0.2, 0.3, 0.4] for i in range(4)]
    trials = [Trial(i, "search", space.snap(x), space.decode(x)) for i, x in enumerate(points)]
    store.start(trials[0])
    store.append(_scored(trials[0]))
    store.start(trials[1])
    browser = Browser(tmp_path)
    states = [t["state"] for t in browser.study("search")["trials"]]
    assert states == ["Complete", "Running"]
    failed = Trial(1, "search", trials[1].x, trials[1].recipe, TrialState.FAILED, error="Boom")
    store.append(failed)
    store.start(trials[2])
    again = [t["state"] for t in Browser(tmp_path).study("search")["trials"]]
    assert again == ["Complete", "Fail", "Running"]
    store.append(_scored(trials[2]))
    store.close()
    assert [t.state.value for t in open_run(tmp_path).trials] == ["COMPLETE", "FAILED", "COMPLETE"]


@pytest.mark.parametrize("optimizer", ["cma_es", "nsga2"])
def test_looking_changes_nothing(tmp_path, optimizer) -> None:
    """A run that was looked at, live and while it lay there killed, continues to the same end."""
    whole = run(tmp_path / "whole", optimizer=optimizer)
    cut = tmp_path / "cut"
    study, store = build(cut, FakeExecutor(dies_after=9), optimizer=optimizer)
    with pytest.raises(SystemExit):
        study.run()
    Browser(cut).study("search")  # its driver still holds the folder
    store.close()
    before = (cut / JOURNAL).read_bytes()
    files = sorted(p.name for p in cut.rglob("*"))
    assert len(Browser(cut).study("search")["trials"]) == 10
    Browser(cut).study("finals")
    assert (cut / JOURNAL).read_bytes() == before
    assert sorted(p.name for p in cut.rglob("*")) == files
    assert list(map(key, run(cut, optimizer=optimizer))) == list(map(key, whole))


def test_notes_written_in_the_dashboard_do_no_harm(tmp_path) -> None:
    """What the dashboard writes are attributes that nothing of ours reads."""
    import optuna

    whole = run(tmp_path / "whole")
    cut = tmp_path / "cut"
    study, store = build(cut, FakeExecutor(dies_after=9))
    with pytest.raises(SystemExit):
        study.run()
    store.close()
    noted = optuna.load_study(study_name="search", storage=_storage(cut))
    dashboard.save_note(noted, "promising")
    assert "promising" in json.dumps(Browser(cut).study("search"))
    assert list(map(key, run(cut))) == list(map(key, whole))
