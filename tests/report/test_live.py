"""The live view: what it calls best, and who does the work."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from evomerge.executors.notes import WORKERS
from evomerge.report.live import LiveView
from tests import synthetic as s


def test_the_best_survives_a_late_reference() -> None:
    """Search trials run beside the reference points, which define the units of the scores."""
    run = s.study(n=6, test=False)
    references = [t for t in run.trials if t.kind == "reference" and t.split == "search"]
    searched = [t for t in run.trials if t.kind == "search" and t.split == "search"]
    best = []
    for order in ((*references, *searched), (*searched, *references)):
        view = LiveView(quiet=True)
        view.begin(run.objectives, 4, 6, 1000, 2)
        for trial in order:
            view.told(trial)
        view.end()
        assert view._best is not None
        best.append((view._best[0], view._best[1].number))
    assert best[0] == best[1]


@pytest.fixture
def heard() -> Iterator[None]:
    """What workers do is logged, as in a search."""
    level = WORKERS.level
    WORKERS.setLevel("INFO")
    yield
    WORKERS.setLevel(level)


def job(node: str, process: int) -> None:
    WORKERS.info("done", extra={"event": {"node": node, "process": process, "trial": 1}})


@pytest.mark.usefixtures("heard")
def test_jobs_are_counted_by_node_where_there_are_several() -> None:
    view = LiveView()
    view.console.file = io.StringIO()
    view.begin((), 4, 6, 1000, 2)
    job("alpha", 1)
    assert "jobs by node" not in shown(view)
    WORKERS.warning("no job", extra={"event": {"node": "beta", "process": 7}})
    for node, process in (("alpha", 2), ("be[b]ta\x1b", 7), ("alpha", 1)):
        job(node, process)
    assert "jobs by node: alpha 3 (2 workers), be[b]ta\ufffd 1 (1 worker)" in shown(view)
    view.end()
    said = view.console.file.getvalue()
    assert "jobs by node: alpha 3 (2 workers)" in said
    job("alpha", 3)
    assert "alpha 3" in shown(view)  # it no longer listens
    assert view._nodes not in WORKERS.handlers


def shown(view: LiveView) -> str:
    from rich.console import Console

    out = Console(file=io.StringIO(), width=200)
    out.print(view._render())
    return out.file.getvalue()  # type: ignore[attr-defined,no-any-return]
