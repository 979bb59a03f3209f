"""Weights & Biases: one W&B run for each run folder, one step for each trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError
from evomerge.trackers import TrialLog, facts, key_of
from evomerge.trial import Objective, Trial


class Wandb(TrialLog):
    """Logs raw scores as ``SPLIT.OBJECTIVE`` and where the time went, over the trial's number.

    A run that continues goes on in the same W&B run. Offline (``WANDB_MODE=offline``) W&B cannot
    know what an earlier sitting logged: each sitting is a folder in RUN/wandb that holds the whole
    run so far, and ``wandb sync`` of the last one is enough.

    Args:
        folder: The run folder.
        objectives: What is scored.
        meta: See :attr:`evomerge.run.Run.meta`.
        project: W&B's project; made where there is none.
        entity: User or team; None: W&B's own choice.

    Raises:
        ConfigError: W&B is not installed, or does not let us in.
    """

    def __init__(
        self,
        *,
        folder: Path,
        objectives: Sequence[Objective],
        meta: Mapping[str, Any],
        project: str = "evomerge",
        entity: str | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError as e:
            raise ConfigError("tracker=wandb is an extra: pip install 'evomerge[wandb]'.") from e
        super().__init__(objectives)
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            console="off",  # the live view is no log
            silent=True,
            init_timeout=30,
            save_code=False,
            disable_git=True,
            x_disable_stats=True,
        )
        try:
            self._run = wandb.init(
                project=project, entity=entity, dir=str(folder), id=key_of(folder),
                name=folder.name, resume="allow", config=facts(meta), settings=settings,
                reinit="create_new",
            )  # fmt: skip
            self._run.define_metric("trial")
            self._run.define_metric("*", step_metric="trial")
        except Exception as e:
            raise ConfigError(f"tracker=wandb: W&B says: {str(e).strip()}") from e
        self.logged = int(self._run.step)

    def _log(self, trial: Trial, count: int, values: Mapping[str, float]) -> None:
        self._run.log({"trial": trial.number, **values}, step=count - 1)

    def close(self, *, finished: bool) -> None:
        """Ends W&B's run, which continues when the search does."""
        self._run.finish(exit_code=0 if finished else 1)
