"""The live view of a search: a rich display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evomerge.choose import is_single, ranked
from evomerge.compare import paired_mean, smallest_visible
from evomerge.constraints import Constraints
from evomerge.report.cells import duration
from evomerge.report.data import printable
from evomerge.report.live_nodes import LiveNodes
from evomerge.scale import Scale
from evomerge.trial import Objective, Trial, TrialState

if TYPE_CHECKING:
    from rich.console import RenderableType

_EVERY = 10.0  # seconds between plain lines
_SLOW_ASK = 0.1  # seconds per proposed point that are worth mentioning


class LiveView:
    """Prints what a study does; an :class:`~evomerge.study.Observer`.

    Args:
        quiet: Print nothing at all.
        name: Of a run that shares the terminal with others: its lines begin with it, and there is
            no display that others would tear.
    """

    def __init__(self, *, quiet: bool = False, name: str = "") -> None:
        from rich.console import Console

        plain = False if name else None
        self.console = Console(stderr=True, quiet=quiet, highlight=False, force_terminal=plain)
        self.quiet, self.name = quiet, name
        self._began = time.monotonic()
        self._display: Any = None
        self._phase = "starting"
        self._capacity, self._n_trials = 1, 0
        self._scale: Scale | None = None
        self._told: list[Trial] = []
        self._n_done, self._n_failed = 0, 0  # search trials
        self._running: dict[tuple[int, str], Trial] = {}
        self._fresh: list[float] = []  # when search trials of this sitting were told
        self._best: tuple[float, Trial] | None = None
        self._printed = 0.0
        self._n_references, self._due_references = 0, 0
        self._n_asked, self._ask_seconds = 0, 0.0
        self._objectives: tuple[Objective, ...] = ()
        self._searched: list[Objective] = []
        self._scalarisation = "mean"
        self._bounds = Constraints.none()
        self._bytes, self._n_models = 0, 0
        self._nodes = LiveNodes()

    def say(self, text: str) -> None:
        """Prints one line with the seconds since the start."""
        from rich.text import Text

        stamp = f"[{time.monotonic() - self._began:5.1f} s] "
        name = f"{self.name}: " if self.name else ""
        self.console.print(Text(name + stamp, style="dim") + Text(printable(text)), soft_wrap=True)

    def checked(self, meta: Mapping[str, Any]) -> None:
        """Says what was found before the workers start."""
        models, space = meta["models"], meta["space"]
        self._scalarisation = str(meta.get("scalarisation") or "mean")
        names = ", ".join(e["name"] for e in models["experts"])
        self.say(
            f"models: {names}"
            + (" on a base" if models["base"] else "")
            + f", {models['n_parameters'] / 1e6:,.2f} M parameters each"
        )
        documents = meta["documents"]
        counts = ", ".join(f"{name} {n}" for name, n in documents["search"].items())
        raced = " (raced: at most)" if meta.get("fingerprint", {}).get("racing") else ""
        for warm in meta.get("warm_start", ()):
            where = "" if warm["inside"] else "; outside the space: scored, but not started from"
            self.say(f"warm start: {warm['label']}{where}")
        self.say(
            f"search: {space['dim']} dimensions ({space['method']}, {len(space['groups'])} layer "
            f"groups), {meta['optimizer']}; documents per candidate{raced}: {counts}"
        )

    def begin(
        self,
        objectives: Sequence[Objective],
        capacity: int,
        n_trials: int,
        n_parameters: int,
        n_models: int,
    ) -> None:
        """The workers are starting."""
        self._objectives = tuple(objectives)
        self._searched = [o for o in objectives if o.search]
        self._capacity, self._n_trials = capacity, n_trials
        self._bytes, self._n_models = 4 * n_parameters, n_models
        self._nodes.listen()
        self.say(f"starting {capacity} worker{'s' * (capacity > 1)}")

    def phase(self, phase: str, total: int) -> None:
        """See :class:`~evomerge.study.Observer`."""
        self._phase = phase
        if phase == "references":
            self._due_references = total
        if phase == "search" and self._display is None and self.console.is_terminal:
            from rich.live import Live

            self._display = Live(
                console=self.console,
                get_renderable=self._render,
                refresh_per_second=4,
                transient=True,
            )
            self._display.start()
        elif phase == "finals" and total:
            self.say(f"scoring {total} finalists and reference points on held-out documents")

    def asked(self, n: int, seconds: float) -> None:
        """See :class:`~evomerge.study.Observer`."""
        self._n_asked, self._ask_seconds = self._n_asked + n, self._ask_seconds + seconds

    def started(self, trial: Trial) -> None:
        """See :class:`~evomerge.study.Observer`."""
        self._running[trial.number, trial.split] = trial
        if trial.attempt:
            self.say(f"{trial.name} is run again (attempt {trial.attempt + 1})")
        elif trial.number == 0 and trial.split == "search":
            self.say("first trial running")

    def told(self, trial: Trial) -> None:
        """See :class:`~evomerge.study.Observer`."""
        fresh = self._running.pop((trial.number, trial.split), None) is not None
        self._told.append(trial)
        if trial.state is TrialState.FAILED:
            last = (trial.error or "").strip().splitlines()[-1:] or ["no reason given"]
            self.say(f"{trial.name} failed: {last[0][:200]}")
        if trial.split != "search":
            return
        if trial.kind == "search":
            self._n_done += 1
            self._n_failed += trial.state is TrialState.FAILED
        if fresh and trial.kind == "search":
            self._fresh.append(time.monotonic())
        if trial.kind == "reference":
            self._scale = None  # another reference may move the scale
            self._best = None
            for t in self._told:
                if t.state is TrialState.COMPLETE and t.kind == "search":
                    self._consider(t)
        if trial.state is TrialState.COMPLETE and trial.kind == "search":
            self._consider(trial)
        if fresh and trial.kind == "reference":
            self._n_references += 1
            if self._n_references == 1:
                self._say_cost()
            if self._n_references == self._due_references:
                self._say_sight()
        if self._display is None and trial.kind == "search" and fresh:
            now = time.monotonic()
            if now - self._printed > _EVERY or self._counts()[0] == self._n_trials:
                self._printed = now
                self.say(self._line())

    def _consider(self, trial: Trial) -> None:
        if self._scale is None:
            self._scale = Scale.fit(self._searched, self._told, scalarisation=self._scalarisation)
            self._bounds = Constraints.fit(self._objectives, self._told)
        best = self._best[1] if self._best is not None else trial
        if ranked([best, trial], self._scale, self._bounds)[:1] == [trial]:
            value = self._scale.scalar(trial.scores.values) if trial.scores else -math.inf
            self._best = (value, trial)

    def _say_cost(self) -> None:
        """What the search will take, once a candidate has been timed."""
        spent = [
            sum(t.scores.seconds.get(k, 0.0) for k in ("merge", "score"))
            for t in self._told
            if t.scores and t.scores.seconds and t.kind == "reference" and t.split == "search"
        ]
        if not spent:
            return
        seconds = statistics.median(spent)
        left = max(0, self._n_trials - self._counts()[0])
        self.say(
            f"one candidate takes {seconds:.2f} s; {left} trials on {self._capacity} worker(s): "
            f"about {duration(left * seconds / self._capacity)}"
        )
        size = self._bytes / 2**20
        self.say(
            f"memory: {size:,.1f} MiB for the live model of each worker, "
            f"{self._n_models * size:,.1f} MiB of checkpoints mapped once per node (as float32)"
        )

    def _say_sight(self) -> None:
        """What the search can see, once the reference points are scored."""
        scale = Scale.fit(self._searched, self._told)
        seen = smallest_visible([t for t in self._told if t.split == "search"], scale)
        if math.isfinite(seen):
            self.say(
                f"{self._n_references} reference points scored; these documents can tell apart "
                f"differences of {seen:.3f} in the mean normalised score"
            )

    def _counts(self) -> tuple[int, int, int]:
        """Search trials done, failed, and trials running."""
        return self._n_done, self._n_failed, len(self._running)

    def _line(self) -> str:
        done, failed, running = self._counts()
        parts = [f"{done}/{self._n_trials} trials"]
        if self._best is not None and self._scale is not None:
            title = f"{self._scale.title} " if self._scale.scalarisation != "mean" else ""
            best = f"best {title}{self._best[0]:.3f} ({self._best[1].name}{self._lead()})"
            values = self._best[1].scores.values if self._best[1].scores else {}
            parts.append(best if self._bounds.kept(values) else f"{best}, no bound kept yet")
        if running:
            parts.append(f"{running} running")
        if failed:
            parts.append(f"{failed} failed")
        if pruned := sum(t.state is TrialState.PRUNED for t in self._told):
            parts.append(f"{pruned} stopped early")
        asking = self._ask_seconds / max(1, self._n_asked)
        if asking >= _SLOW_ASK:
            parts.append(f"{duration(asking)} to propose one")
        if len(self._fresh) > 1:
            span = self._fresh[-1] - self._fresh[max(0, len(self._fresh) - 40)]
            rate = (min(len(self._fresh), 40) - 1) / max(span, 1e-9)
            parts.append(f"{rate * 60:.0f} trials/min")
            if self._phase == "search":
                parts.append(f"{duration((self._n_trials - done) / rate)} left")
        return ", ".join(parts)

    def _lead(self) -> str:
        """How far the best is ahead of the best single model, with its error bar."""
        if self._best is None or self._scale is None:
            return ""
        told = [t for t in self._told if t.kind == "reference" and t.split == "search"]
        singles = ranked([t for t in told if is_single(t)], self._scale, self._bounds)
        if not singles:
            return ""
        lead = paired_mean(self._best[1], singles[0], self._scale)
        return f", {lead.mean:+.3f} ± {lead.stderr:.3f} over {printable(singles[0].label)}"

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        done, _, _ = self._counts()
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(self._phase, style="bold"),
            ProgressBar(total=max(1, self._n_trials), completed=done, width=40),
            Text(self._line()),
        )
        rows: list[RenderableType] = [head]
        if self._best is not None and self._scale is not None:
            trial = self._best[1]
            shown = Table.grid(padding=(0, 2))
            normalised = self._scale.normalise(trial.scores.values) if trial.scores else {}
            for o in (o for o in self._objectives if o.guides):
                value = trial.scores.values[o.name] if trial.scores else math.nan
                shown.add_row(
                    Text("  " + printable(o.name), style="cyan"),
                    Text(f"{o.sign * value:.4f} {o.metric}"),
                    Text(f"{normalised.get(o.name, math.nan):.3f} normalised", style="dim"),
                )
            rows.append(shown)
        names = ", ".join(f"{t.name} on {t.split}" for t in list(self._running.values())[:4])
        if names:
            rows.append(Text(f"  running: {names}", style="dim"))
        if nodes := self._nodes.line():
            rows.append(Text(f"  jobs by node: {nodes}", style="dim"))
        return Group(*rows)

    def end(self) -> None:
        """Takes the display down; says who did the work, where that was more than one node."""
        self._nodes.stop()
        if nodes := self._nodes.line():
            self.say(f"jobs by node: {nodes}")
        if self._display is not None:
            self._display.stop()
            self._display = None
            self.say(self._line())
