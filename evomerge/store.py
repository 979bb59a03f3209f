"""TrialStore: every trial, durable before it is told.

A run folder holds one Optuna journal with two studies, ``search`` (every search and reference
trial) and ``finals`` (finalists on the select and test splits), so that ``optuna-dashboard`` and
``optuna.visualization`` work on it, also while it runs; and ``scores/*.npz`` with the scores of
single documents, written before the journal speaks of them. There is no second copy of anything.

What the journal needs (tried): appending after a torn tail loses that record at the next load, so
a writer first truncates to the last newline; a stale journal lock costs 30 s, so it is removed;
two writers are both accepted, so ``run.lock`` is held (flock) for the writer's life; loading
returns number order, so the told order is an attribute written with the result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from evomerge.errors import RunFolderError
from evomerge.recipe import LayerGroup, ModelRef, Recipe
from evomerge.run import Run
from evomerge.trial import Objective, Scores, Trial, TrialState

if TYPE_CHECKING:
    import optuna

JOURNAL = "journal.log"
_SEARCH, _FINALS = "search", "finals"


class TrialStore:
    """The only writer of a run folder.

    Args:
        folder: The run folder; made where it does not exist.
        objectives: What is scored, merely reported objectives included.
        meta: See :attr:`evomerge.run.Run.meta`. ``meta["fingerprint"]`` is a mapping of everything
            that shapes the search; a folder continues only under an equal one.
        axes: (name, low, high) of every searched axis, for display in Optuna's tools.

    Raises:
        RunFolderError: Another driver holds the folder, it belongs to another configuration, or
            its journal is damaged.
    """

    def __init__(
        self,
        folder: Path,
        objectives: Sequence[Objective],
        meta: Mapping[str, Any],
        axes: Sequence[tuple[str, float, float]],
    ) -> None:
        self.folder = folder
        self.objectives = tuple(objectives)
        self._axes = tuple(axes)
        (folder / "scores").mkdir(parents=True, exist_ok=True)
        self._lock = _acquire(folder)
        try:
            journal = folder / JOURNAL
            known = journal.exists() and journal.stat().st_size > 0
            if known:
                _repair(journal)
                self._check(read_meta(folder), meta)
            self._studies = self._open_studies(meta)
            self._finish_told()
        except BaseException:
            self.close()
            raise
        self._ids = {
            (t.user_attrs["number"], t.user_attrs["split"]): t.number
            for name in (_SEARCH, _FINALS)
            for t in self._studies[name].get_trials(deepcopy=False)
        }
        self._counts = {n: len(s.get_trials(deepcopy=False)) for n, s in self._studies.items()}
        self._layouts = set(_layouts(self._studies[_SEARCH]))
        self._seq = 1 + max((s for s, _ in self._told()), default=-1)

    def _check(self, found: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        if not found:
            return  # killed before its first record was whole: nothing to contradict
        old = found.get("fingerprint") or {}
        new = json.loads(json.dumps(meta.get("fingerprint") or {}))
        if old == new:
            return
        differ = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        shown = "; ".join(
            f"{k}: {_short(old.get(k))} there, {_short(new.get(k))} now" for k in differ[:3]
        )
        raise RunFolderError(
            f"{self.folder} belongs to another configuration ({', '.join(differ)} differ: "
            f"{shown}). Choose another run folder (run_dir=...), or repeat the settings that "
            "this one was made with; they are in its config.yaml."
        )

    def _open_studies(self, meta: Mapping[str, Any]) -> dict[str, optuna.Study]:
        optuna = _optuna()
        storage = _storage(self.folder)
        searched = [o for o in self.objectives if o.search]
        studies = {}
        for name in (_SEARCH, _FINALS):
            studies[name] = optuna.create_study(
                storage=storage,
                study_name=name,
                directions=[o.direction for o in searched],
                sampler=optuna.samplers.RandomSampler(),
                load_if_exists=True,
            )
            names = [o.name for o in searched]
            if studies[name].metric_names != names:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # experimental since Optuna 3.2
                    studies[name].set_metric_names(names)
        plain = json.loads(json.dumps(dict(meta)))
        plain["objectives"] = [dataclasses.asdict(o) for o in self.objectives]
        old = studies[_SEARCH].user_attrs.get("meta")
        for kept in ("created", "finished", "note"):
            if old and kept in old:
                plain[kept] = old[kept]
        if old != plain:
            studies[_SEARCH].set_user_attr("meta", plain)
        return studies

    def _finish_told(self) -> None:
        """Closes trials whose result was recorded just before their driver was killed."""
        for study in self._studies.values():
            for frozen in study.get_trials(deepcopy=False):
                if "result" in frozen.user_attrs and not frozen.state.is_finished():
                    self._tell(study, frozen.number, frozen.user_attrs["result"])

    @property
    def meta(self) -> dict[str, Any]:
        """Plain data of the run, as it was last written."""
        return dict(self._studies[_SEARCH].user_attrs["meta"])

    def update_meta(self, **changes: Any) -> None:
        """Changes plain data of the run that does not shape the search."""
        meta = self.meta
        if any(meta.get(k) != v for k, v in changes.items()):
            self._studies[_SEARCH].set_user_attr("meta", json.loads(json.dumps(meta | changes)))

    def start(self, trial: Trial) -> None:
        """Records a RUNNING trial; a trial known already is recorded as another attempt."""
        key = (trial.number, trial.split)
        study = self._studies[_study_of(trial)]
        if key in self._ids:
            frozen = study.get_trials(deepcopy=False)[self._ids[key]]
            study._storage.set_trial_user_attr(frozen._trial_id, "attempt", trial.attempt)
        else:
            self._add(trial, TrialState.RUNNING)

    def append(self, trial: Trial) -> None:
        """Records a finished trial; durable when this returns.

        Raises:
            ValueError: The trial is RUNNING.
            RunFolderError: The folder cannot be written (a full disk).
        """
        if not trial.finished:
            raise ValueError(f"{trial.name} is still RUNNING; use start() for it.")
        try:
            self._append(trial)
        except OSError as e:
            raise RunFolderError(
                f"cannot write to {self.folder}: {e}. Free some space and start the same command "
                "again: everything recorded so far is kept."
            ) from e

    def _append(self, trial: Trial) -> None:
        if trial.scores is not None and trial.copied_from is None:
            _write_scores(self.folder, trial)
        key = (trial.number, trial.split)
        if key not in self._ids:
            self._add(trial, TrialState.RUNNING)
        study = self._studies[_study_of(trial)]
        frozen = study.get_trials(deepcopy=False)[self._ids[key]]
        result: dict[str, Any] = {
            "seq": self._seq,
            "state": trial.state.value,
            "attempt": trial.attempt,
            "error": trial.error,
            "copied_from": trial.copied_from,
        }
        if trial.scores is not None:
            result["values"] = dict(trial.scores.values)
            result["stderr"] = {
                k: None if math.isnan(v) else v for k, v in trial.scores.stderr.items()
            }
            result["seconds"] = dict(trial.scores.seconds)
            result["asked"] = trial.scores.asked
        study._storage.set_trial_user_attr(frozen._trial_id, "result", result)
        self._tell(study, frozen.number, result)
        self._seq += 1

    def _tell(self, study: optuna.Study, number: int, result: Mapping[str, Any]) -> None:
        optuna = _optuna()
        if result["state"] == TrialState.COMPLETE:
            values = result["values"]
            study.tell(number, [o.sign * values[o.name] for o in self.objectives if o.search])
        elif result["state"] == TrialState.PRUNED:
            study.tell(number, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(number, state=optuna.trial.TrialState.FAIL)

    def _add(self, trial: Trial, state: TrialState) -> None:
        optuna = _optuna()
        name = _study_of(trial)
        study = self._studies[name]
        recipe, layout = _split_recipe(trial.recipe)
        key = hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest()[:16]
        if key not in self._layouts:
            self._studies[_SEARCH].set_user_attr(f"layout:{key}", layout)
            self._layouts.add(key)
        params, distributions = {}, {}
        if trial.x is not None:
            for (axis, low, high), x in zip(self._axes, trial.x, strict=True):
                params[axis] = min(max(low + float(x) * (high - low), low), high)
                distributions[axis] = optuna.distributions.FloatDistribution(low, high)
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[state.value],
                params=params,
                distributions=distributions,
                user_attrs={
                    "number": trial.number,
                    "kind": trial.kind,
                    "split": trial.split,
                    "label": trial.label,
                    "attempt": trial.attempt,
                    "raced_after": trial.raced_after,
                    "x": None if trial.x is None else [float(v) for v in trial.x],
                    "recipe": recipe,
                    "layout": key,
                },
            )
        )
        self._ids[(trial.number, trial.split)] = self._counts[name]
        self._counts[name] += 1

    def _told(self) -> Iterator[tuple[int, Trial]]:
        return _told(self._studies[_SEARCH], self._studies[_FINALS], self.folder)

    def load(self) -> list[Trial]:
        """Finished trials of every split in told order, then those left RUNNING."""
        finished = [t for _, t in sorted(self._told(), key=lambda pair: pair[0])]
        return [*finished, *_running(self._studies[_SEARCH], self._studies[_FINALS])]

    def close(self) -> None:
        """Lets another driver have the folder."""
        self._lock.close()


def open_run(path: Path | str) -> Run:
    """Reads a run folder, finished or live, without locking it.

    Raises:
        RunFolderError: No run there, or a damaged journal.
    """
    folder = Path(path)
    meta = read_meta(folder)
    if not meta:
        raise RunFolderError(f"{folder} holds nothing yet: its search has only just begun.")
    storage = _storage(folder)
    optuna = _optuna()
    search, finals = (
        optuna.load_study(study_name=name, storage=storage) for name in (_SEARCH, _FINALS)
    )
    told = sorted(_told(search, finals, folder), key=lambda pair: pair[0])
    return Run(
        path=folder,
        objectives=tuple(Objective(**o) for o in meta["objectives"]),
        trials=tuple(t for _, t in told),
        running=tuple(_running(search, finals)),
        meta=meta,
    )


def read_meta(folder: Path) -> dict[str, Any]:
    """The run's plain data; {} where the driver was killed before it was written.

    Raises:
        RunFolderError: No run there, or a damaged journal.
    """
    if not (folder / JOURNAL).is_file():
        raise RunFolderError(
            f"{folder} is no run folder: it has no {JOURNAL}. Run folders are made by "
            "`evomerge search`, by default below runs/."
        )
    optuna = _optuna()
    try:
        study = optuna.load_study(study_name=_SEARCH, storage=_storage(folder))
        meta: dict[str, Any] = study.user_attrs["meta"]
    except KeyError:
        return {}
    except ValueError as e:
        raise RunFolderError(
            f"{folder / JOURNAL} is damaged ({e}); restore it from a copy, or start a new run."
        ) from e
    return meta


def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _storage(folder: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = str(folder / JOURNAL)
        return JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))


def _acquire(folder: Path) -> IO[str]:
    handle = (folder / "run.lock").open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.seek(0)
        holder = handle.read().strip() or "another process"
        handle.close()
        raise RunFolderError(
            f"{folder} is in use by {holder}; a run folder has one driver. Wait for it, stop it, "
            "or choose another run folder (run_dir=...)."
        ) from None
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}")
    handle.flush()
    return handle


def _repair(journal: Path) -> None:
    """Cuts a torn last line off and removes the lock of a dead writer."""
    for lock in journal.parent.glob(f"{JOURNAL}.lock*"):
        with contextlib.suppress(FileNotFoundError):
            lock.unlink()
    with journal.open("r+b") as f:
        end = f.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            f.seek(start)
            cut = f.read(end - start).rfind(b"\n")
            if cut >= 0:
                f.truncate(start + cut + 1)
                return
            end = start
        f.truncate(0)


def _study_of(trial: Trial) -> str:
    return _SEARCH if trial.split == "search" else _FINALS


def _split_recipe(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """The part of a recipe that changes from trial to trial, and the part that rarely does."""
    data = recipe.to_dict()
    layout = {key: data.pop(key) for key in ("format", "models", "base", "groups")}
    return data, layout


@dataclasses.dataclass(frozen=True)
class _Layout:
    models: tuple[ModelRef, ...]
    base: ModelRef | None
    groups: tuple[LayerGroup, ...]


def _layouts(search: optuna.Study) -> dict[str, _Layout]:
    found = {}
    for key, data in search.user_attrs.items():
        if key.startswith("layout:"):
            found[key.removeprefix("layout:")] = _Layout(
                tuple(ModelRef(**m) for m in data["models"]),
                ModelRef(**data["base"]) if data["base"] else None,
                tuple(LayerGroup(g["name"], tuple(g["tensors"])) for g in data["groups"]),
            )
    return found


def _trial(attrs: Mapping[str, Any], layouts: Mapping[str, _Layout], **extra: Any) -> Trial:
    layout, data = layouts[attrs["layout"]], attrs["recipe"]
    recipe = Recipe(
        method=data["method"],
        models=layout.models,
        base=layout.base,
        groups=layout.groups,
        coefficients={k: np.array(v) for k, v in data["coefficients"].items()},
        fixed=data["fixed"],
    )
    return Trial(
        number=attrs["number"],
        kind=attrs["kind"],
        split=attrs["split"],
        label=attrs["label"],
        x=None if attrs["x"] is None else np.array(attrs["x"]),
        recipe=recipe,
        raced_after=attrs.get("raced_after"),
        **{"attempt": attrs["attempt"], **extra},
    )


def _told(search: optuna.Study, finals: optuna.Study, folder: Path) -> Iterator[tuple[int, Trial]]:
    layouts = _layouts(search)
    for study in (search, finals):
        for frozen in study.get_trials(deepcopy=False):
            attrs = frozen.user_attrs
            if "result" not in attrs:
                continue
            result = attrs["result"]
            scores = None
            if "values" in result:
                source = result["copied_from"]
                number = attrs["number"] if source is None else source
                scores = Scores(
                    values=result["values"],
                    stderr={k: math.nan if v is None else v for k, v in result["stderr"].items()},
                    per_example=_read_scores(folder, number, attrs["split"], result["values"]),
                    seconds=result["seconds"],
                    asked=result.get("asked"),
                )
            yield (
                result["seq"],
                _trial(
                    attrs,
                    layouts,
                    state=TrialState(result["state"]),
                    scores=scores,
                    error=result["error"],
                    attempt=result["attempt"],
                    copied_from=result["copied_from"],
                ),
            )


def _running(search: optuna.Study, finals: optuna.Study) -> Iterator[Trial]:
    layouts = _layouts(search)
    for study in (search, finals):
        for frozen in study.get_trials(deepcopy=False):
            if "result" not in frozen.user_attrs:
                yield _trial(frozen.user_attrs, layouts)


def _scores_path(folder: Path, number: int, split: str) -> Path:
    return folder / "scores" / f"{number:05d}-{split}.npz"


def _write_scores(folder: Path, trial: Trial) -> None:
    if trial.scores is None:
        return
    arrays: dict[str, Any] = {k: v for k, v in trial.scores.per_example.items() if v is not None}
    path = _scores_path(folder, trial.number, trial.split)
    part = path.with_suffix(".part")
    with part.open("wb") as f:
        named = {f"values{i}": v for i, v in enumerate(arrays.values())}
        np.savez(f, names=np.array(list(arrays), dtype=np.str_), **named)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)


def _read_scores(
    folder: Path, number: int, split: str, values: Mapping[str, float]
) -> dict[str, np.ndarray[Any, np.dtype[np.float32]] | None]:
    found: dict[str, np.ndarray[Any, np.dtype[np.float32]] | None] = dict.fromkeys(values)
    try:
        with np.load(_scores_path(folder, number, split)) as data:
            for i, name in enumerate(data["names"]):
                found[str(name)] = data[f"values{i}"]
    except FileNotFoundError:
        pass  # aggregate scores are still good: a folder may have been copied without arrays
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
