"""The live view: what it calls best."""

from __future__ import annotations

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
        assert view._best is not None
        best.append((view._best[0], view._best[1].number))
    assert best[0] == best[1]
