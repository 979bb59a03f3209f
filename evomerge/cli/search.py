"""One study: from a configuration to its report, in one run folder."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evomerge.cli.build import Plan, build_component, build_plan
from evomerge.errors import ConfigError

if TYPE_CHECKING:
    from evomerge.report.live import LiveView
    from evomerge.run import Run
    from evomerge.store import TrialStore
    from evomerge.study import Study


def run_one(
    config: DictConfig,
    folder: Path,
    *,
    dry: bool,
    extend: int | None,
    quiet: bool,
    name: str = "",
) -> Path:
    """Runs one study in one folder.

    Args:
        config: The configuration.
        folder: The run folder.
        dry: See :func:`~evomerge.cli.compose.run_hydra`.
        extend: See :func:`~evomerge.cli.compose.run_hydra`.
        quiet: See :func:`~evomerge.cli.compose.run_hydra`.
        name: What its lines begin with, where several studies share the terminal.

    Raises:
        EvomergeError: Whatever stops it.
    """
    from evomerge.report.live import LiveView
    from evomerge.store import TrialStore, open_run
    from evomerge.study import Study
    from evomerge.trackers import Observers
    from evomerge.trackers.ray_metrics import RayMetrics

    view = LiveView(quiet=quiet, name=name)
    view.say(f"run folder {folder}")
    try:
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as e:
        raise ConfigError(f"the configuration cannot be resolved: {e}") from e
    plan = build_plan(plain)
    view.checked(plan.meta)
    objectives = plan.evaluator.objectives
    store = TrialStore(folder, objectives, plan.meta, plan.axes, plain["storage"])
    try:
        _write_config(folder, plan, store)
        n_trials = plain["n_trials"]
        have = sum(t.kind == "search" and t.split == "search" for t in store.load())
        if extend is not None:
            n_trials = have + extend
        store.update_meta(n_trials=max(n_trials, have))
        limits = {k: v for k, v in (plain["budget"] or {}).items() if v is not None}
        budget = [max(n_trials, have), plain["n_finalists"], *([limits] if limits else [])]
        if not dry and extend is None and store.meta.get("finished") == budget:
            view.say("this search is finished; --extend N adds trials")
            _report(open_run(folder), view, finished=True)
            return folder
        store.update_meta(ended="")
        observer = Observers(view, None if dry else _tracker(plan, folder))
        executor = build_component("executor", plain["executor"], spec=_worker_spec(plan, dry=dry))
        observer.add(RayMetrics.where_ray_runs(folder.name, lambda: executor.capacity))
        finished = False
        try:
            study = Study(
                space=plan.space,
                optimizer=plan.optimizer,
                executor=executor,
                store=store,
                references=plan.references,
                n_trials=n_trials,
                n_finalists=plain["n_finalists"],
                budget=plan.budget,
                racing=plan.racing,
                view=lambda trials: plan.view(folder, trials),
                observer=observer,
            )
            _say_note(plan, view)
            view.begin(
                plan.evaluator.objectives,
                executor.capacity,
                n_trials,
                plan.pool.n_parameters,
                len(plan.pool.experts) + (plan.pool.base is not None),
            )
            with _interruptible(study, view):
                finished = study.run(dry=dry)
            store.update_meta(note=getattr(plan.optimizer, "note", ""))
            if finished:
                ended = plan.budget.spent() if plan.budget is not None else ""
                store.update_meta(finished=budget, ended=ended)
        finally:
            view.end()
            observer.close(finished=finished)
            executor.close()
    finally:
        store.close()
    if not dry:
        _report(open_run(folder), view, finished=finished)
        if not finished:
            raise KeyboardInterrupt  # also ends a sweep, and the exit code says so
    return folder


def _tracker(plan: Plan, folder: Path) -> Any:
    config = plan.config.get("tracker")
    if not config:
        return None
    objectives = plan.evaluator.objectives
    return build_component("tracker", config, folder=folder, objectives=objectives, meta=plan.meta)


def _say_note(plan: Plan, view: LiveView) -> None:
    """What the optimizer has to say before it starts, if anything."""
    note = getattr(plan.optimizer, "note", "")
    if note:
        view.say(note)


def _worker_spec(plan: Plan, *, dry: bool) -> Any:
    from evomerge.executors.worker import WorkerSpec

    return WorkerSpec(
        pool=plan.pool,
        evaluator=plan.evaluator,
        device=plan.config["device"],
        dtype=plan.config["dtype"],
        trust_remote_code=plan.config["trust_remote_code"],
        score_cache=plan.config["score_cache"] and not dry,  # a dry run is there to take times
    )


def _write_config(folder: Path, plan: Plan, store: TrialStore) -> None:
    """Writes config.yaml and what the stock lm_eval commands need, once the folder is ours."""
    text = yaml.safe_dump(plan.config, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text)
    write, command = (
        getattr(plan.evaluator, name, None) for name in ("write_samples", "stock_command")
    )
    if write is None or command is None:
        return
    stock = {}
    for split, file in write(folder).items():
        lines = command("MODEL_FOLDER", split, file)
        stock[split] = [line.replace("MODEL_FOLDER", "{model}") for line in lines]
    store.update_meta(stock=stock)


@contextlib.contextmanager
def _interruptible(study: Study, view: LiveView) -> Iterator[None]:
    """Ctrl-C once finishes what runs; twice stops now. Either way the same command goes on."""

    def handle(*_: Any) -> None:
        study.stop()
        view.say(
            "stopping: trials that run are finished first; press Ctrl-C again to stop now. The "
            "same command continues this run."
        )
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        old = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread: nobody to press Ctrl-C
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


def _report(run: Run, view: LiveView, *, finished: bool) -> None:
    """Writes report.html and front.png into the run folder and prints the tables."""
    from evomerge.report.page import write_html
    from evomerge.report.picture import write_png
    from evomerge.report.terminal import show

    if not view.quiet and not view.name:
        show(run)
    write_html(run, run.path / "report.html")
    write_png(run, run.path / "front.png")
    view.say(f"report: {run.path / 'report.html'} and {run.path / 'front.png'}")
    if not finished:
        budget = run.meta.get("n_trials")
        view.say(f"stopped early; the same command with n_trials={budget} continues this run")
