"""Hydra launcher: the jobs of a sweep as Ray tasks (``hydra/launcher=ray``).

Hydra looks for launchers in this namespace package and imports every module in it whenever a
configuration is composed: nothing heavy is imported at the top. ``hydra-ray-launcher`` needs an
older cloudpickle than Ray's own dependencies do, and reserves a core for every job.

A job is a study's driver, which mostly waits: its task reserves nothing, or the drivers of a sweep
would take the cores that their own workers wait for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class RayLauncher(Launcher):
    """Launches jobs on a Ray cluster, several at once.

    Args:
        address: Of a running cluster (``"auto"`` finds one); None starts Ray on this machine.
        at_once: Jobs at once; None for one per GPU of the cluster, or per core without GPUs.
    """

    def __init__(self, address: str | None = None, at_once: int | None = None) -> None:
        self._address, self._at_once = address, at_once

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """See :class:`hydra.plugins.launcher.Launcher`."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Runs the jobs; Ctrl-C asks each to finish what it runs, twice stops now.

        Raises:
            ConfigError: ``at_once`` below 1, or no cluster at the address.
            KeyboardInterrupt: After Ctrl-C.
        """
        from evomerge.errors import ConfigError
        from evomerge.executors.ray import start_ray

        if self._at_once is not None and self._at_once < 1:
            raise ConfigError(f"hydra.launcher.at_once: expected at least 1, got {self._at_once}.")
        setup_globals()
        Path(str(self._config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        ray, ours = start_ray(self._address, log_to_driver=True)
        try:
            there = ray.cluster_resources()
            room = int(there.get("GPU", 0) or there.get("CPU", 1))
            at_once = min(self._at_once or max(1, room), len(job_overrides))
            return self._run(ray, job_overrides, initial_job_idx, at_once)
        finally:
            if ours:
                ray.shutdown()

    def _run(
        self, ray: Any, job_overrides: Sequence[Sequence[str]], first: int, at_once: int
    ) -> list[JobReturn]:
        task = ray.remote(num_cpus=0, max_retries=3)(_run_job)  # a study continues
        shared = (self._context, self._task, self._config, Singleton.get_state(), at_once)
        common = ray.put(shared)
        waiting, running, done = list(enumerate(job_overrides)), {}, {}
        stopping = False
        while (waiting and not stopping) or running:
            try:
                while waiting and not stopping and len(running) < at_once:
                    i, overrides = waiting.pop(0)
                    running[task.remote(common, first + i, list(overrides), str(Path.cwd()))] = i
                    _say(f"#{first + i} started: {' '.join(filter_overrides(overrides))}")
                for ref in ray.wait(list(running))[0]:
                    i = running.pop(ref)
                    done[i] = _answer(ray, ref)
                    _say(f"#{first + i} ended, {len(done)} of {len(job_overrides)}")
            except KeyboardInterrupt:
                if stopping:
                    raise
                stopping = True
                for ref in running:
                    ray.cancel(ref, recursive=False)  # SIGINT: it finishes what runs
        if stopping:
            raise KeyboardInterrupt
        return [done[i] for i in sorted(done)]


def _run_job(shared: tuple[Any, ...], number: int, overrides: list[str], cwd: str) -> JobReturn:
    """One job, in a Ray task."""
    context, task, config, singletons, at_once = shared
    os.chdir(cwd)
    setup_globals()
    Singleton.set_state(singletons)
    job = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job):
        job.hydra.job.id = job.hydra.job.num = number
        if job.executor.get("share") == 1:
            job.executor.share = at_once
    return run_job(
        hydra_context=context,
        task_function=task,
        config=job,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def _answer(ray: Any, ref: Any) -> JobReturn:
    """What a job returned; a job that was lost is one that failed, and the others go on."""
    from evomerge.errors import StudyError

    try:
        answer: JobReturn = ray.get(ref)
    except ray.exceptions.RayError as e:
        reason = str(e).strip().splitlines()[-1:] or [type(e).__name__]
        error = StudyError(f"a job of the sweep was lost: {reason[0]}")
        return JobReturn(status=JobStatus.FAILED, _return_value=error)
    return answer


def _say(text: str) -> None:
    sys.stderr.write(f"sweep: job {text}\n")
