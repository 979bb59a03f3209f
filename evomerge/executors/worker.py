"""One worker: a live model, merged and scored job after job. It never raises for a job."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from evomerge.evaluators.base import Evaluator
from evomerge.executors.base import Job
from evomerge.executors.notes import note_job
from evomerge.experts import ExpertPool
from evomerge.recipe import Recipe
from evomerge.trial import Scores, Trial, TrialState

if TYPE_CHECKING:
    from evomerge.score_cache import ScoreCache


@dataclasses.dataclass(frozen=True)
class WorkerSpec:
    """Everything a worker is built from; travels by pickle.

    Attributes:
        pool: The models.
        evaluator: What scores them.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"cuda:all"`` (spread over all visible GPUs),
            or ``"auto"``: a GPU where there is one.
        dtype: dtype of the live model: ``"auto"``, ``"float32"``, ``"bfloat16"``, ``"float16"``.
        threads: torch threads; None leaves torch's own choice.
        trust_remote_code: Passed to transformers.
        score_cache: Whether scores are looked up in the cache folder, and kept there.
        paths: Root of checkpoints on the driver to their root on other nodes.
        stage: Folder on a node's own disk to which it copies the checkpoints; None: not copied.
    """

    pool: ExpertPool
    evaluator: Evaluator
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    trust_remote_code: bool = False
    score_cache: bool = True
    paths: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stage: str | None = None


class Worker:
    """Materialises and scores recipes on one device.

    Raises:
        EvomergeError: When built, if the model cannot be loaded or the tasks cannot be built.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        import torch
        from transformers.utils import logging

        from evomerge.materialize import LiveModel, Merger
        from evomerge.staging import pool_here

        disable_progress_bar: Callable[[], None] = logging.disable_progress_bar
        disable_progress_bar()  # a bar for every load would tear the live view
        if spec.threads is not None:
            torch.set_num_threads(max(1, spec.threads))
        pool = pool_here(spec.pool, paths=spec.paths, stage=spec.stage)
        spec = dataclasses.replace(spec, pool=pool)
        device = spec.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._spec = spec
        self._live = LiveModel(
            spec.pool, device, spec.dtype, trust_remote_code=spec.trust_remote_code
        )
        self._evaluator = spec.evaluator
        self._evaluator.prepare(self._live.model, self._live.tokenizer)
        self._mergers: dict[tuple[str, str], Merger] = {}
        self._known = self._score_cache() if spec.score_cache else None

    def run(self, job: Job) -> Trial:
        """Runs one job; an exception makes a FAILED trial with its traceback.

        A recipe that was scored before, in this run or another, is neither merged nor scored.
        """
        done = self._outcome(job)
        note_job(done)
        return done

    def _outcome(self, job: Job) -> Trial:
        trial = job.trial
        try:
            found = self._known.find(trial.recipe, trial.split) if self._known else None
            scores = found or self._score(job)
            state = TrialState.COMPLETE if scores.asked is None else TrialState.PRUNED
            if self._known and not found and state is TrialState.COMPLETE:  # a whole split
                self._known.add(trial.recipe, trial.split, scores)
            return dataclasses.replace(trial, state=state, scores=scores)
        except Exception:  # noqa: BLE001 - failure is data
            return dataclasses.replace(
                trial, state=TrialState.FAILED, error=traceback.format_exc(limit=-8)
            )

    def healthy(self) -> bool:
        """Whether the device still works: after some CUDA errors every later call fails too."""
        import torch

        try:
            for device in self._live.devices:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
        except RuntimeError:
            return False
        return True

    def _score_cache(self) -> ScoreCache | None:
        """Where scores of the same recipes lie; None where the evaluator does not say enough."""
        from evomerge.cache import cache_folder
        from evomerge.score_cache import ScoreCache, side_files_hash

        depends_on = getattr(self._evaluator, "scores_depend_on", None)
        if depends_on is None:
            return None
        anchor = self._spec.pool.anchor
        model = {
            "anchor": [anchor.content, side_files_hash(anchor.folder)],
            "dtype": str(self._live.model.dtype),
            "device": self._live.model.device.type,
        }
        return ScoreCache(cache_folder(), depends_on, model)

    def _score(self, job: Job) -> Scores:
        trial = job.trial
        start = time.perf_counter()
        self._merge(trial.recipe)
        merged = time.perf_counter()
        scores = self._evaluator.evaluate(self._live.model, trial.recipe, trial.split, job.bar)
        seconds = {"merge": merged - start, "score": time.perf_counter() - merged}
        return dataclasses.replace(scores, seconds=seconds)

    def _merge(self, recipe: Recipe) -> None:
        from evomerge.cache import cache_folder
        from evomerge.materialize import Merger, check_recipe

        key = (recipe.method, repr(sorted(recipe.fixed.items())))
        check_recipe(recipe, self._spec.pool)
        if key not in self._mergers:  # one at a time: on a GPU each holds a copy of the experts
            merger = Merger(self._spec.pool, recipe.method, recipe.fixed, cache_folder())
            self._mergers = {key: merger}
        self._mergers[key].merge(recipe, self._live.tensors)
