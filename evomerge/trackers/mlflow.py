"""MLflow: one MLflow run for each run folder, one step for each trial."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError
from evomerge.trackers import TrialLog, facts, key_of
from evomerge.trial import Objective, Trial

_KEY, _TOLD = "evomerge.key", "evomerge.told"


class Mlflow(TrialLog):
    """Logs raw scores as ``SPLIT.OBJECTIVE`` and where the time went, with the trial's number.

    A run that continues goes on in the same MLflow run, found by a tag that stands for its folder;
    what was logged is not logged again.

    Args:
        folder: The run folder.
        objectives: What is scored.
        meta: See :attr:`evomerge.run.Run.meta`.
        uri: Of the tracking server, or a database such as ``sqlite:///mlflow.db``; None: MLflow's
            own choice (``MLFLOW_TRACKING_URI``).
        experiment: MLflow's experiment; made where there is none.

    Raises:
        ConfigError: MLflow is not installed, or its server does not answer.
    """

    def __init__(
        self,
        *,
        folder: Path,
        objectives: Sequence[Objective],
        meta: Mapping[str, Any],
        uri: str | None = None,
        experiment: str = "evomerge",
    ) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as e:
            raise ConfigError("tracker=mlflow is an extra: pip install 'evomerge[mlflow]'.") from e
        # a server that is away is to cost a search seconds; MLflow's own choice is minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        self._client = MlflowClient(tracking_uri=uri)
        super().__init__(objectives)
        try:
            self._id, self.logged = self._find(folder, experiment)
            if self.logged == 0:
                self._describe(meta)
        except Exception as e:
            raise ConfigError(f"tracker.uri: MLflow says: {str(e).strip()}") from e

    def _describe(self, meta: Mapping[str, Any]) -> None:
        for name, value in facts(meta).items():
            self._client.log_param(self._id, name, value)

    def _find(self, folder: Path, experiment: str) -> tuple[str, int]:
        """(MLflow's run id, trials that it holds), of a new run where there is none."""
        found = self._client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else self._client.create_experiment(experiment)
        key = key_of(folder)  # MLflow cannot quote a path
        runs = self._client.search_runs([where], f"tags.`{_KEY}` = '{key}'", max_results=1)
        if runs:
            run = runs[0]
            self._client.update_run(run.info.run_id, status="RUNNING")
            return run.info.run_id, int(run.data.tags.get(_TOLD, 0))
        tags = {_KEY: key, "evomerge.folder": str(folder.resolve())}
        run = self._client.create_run(where, run_name=folder.name, tags=tags)
        return run.info.run_id, 0

    def _log(self, trial: Trial, count: int, values: Mapping[str, float]) -> None:
        """In one request: a trial whose tag is missing would be logged again."""
        from mlflow.entities import Metric, RunTag

        now = int(1000 * time.time())
        metrics = [Metric(n, v, now, trial.number) for n, v in values.items()]
        self._client.log_batch(self._id, metrics, tags=[RunTag(_TOLD, str(count))])

    def close(self, *, finished: bool) -> None:
        """Ends MLflow's run, which continues when the search does."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
