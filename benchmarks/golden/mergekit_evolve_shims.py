"""Runs mergekit-evolve 0.1.5 on a machine without a GPU, and notes when candidates are scored.

    MERGEKIT_EVOLVE_TIMES=FILE PYTHONPATH=benchmarks/golden \\
        /path/to/mergekit/env/bin/python -m mergekit_evolve_shims CONFIG.yaml --storage-path DIR

For ``benchmarks/vs_mergekit_evolve.py``; runs in mergekit's own environment and imports nothing of
ours. The arguments are mergekit-evolve's. Made for torch 2.13, transformers 5.12, lm_eval 0.4.13,
ray 2.60, cma 4.5, pydantic 2.10. Six things keep mergekit-evolve from running there, and none of
them touches what is measured:

1. ``mergekit.evo.actors`` names ``lm_eval.models.vllm_causallms.VLLM`` in an annotation, and that
   module cannot be imported without vLLM: an empty class stands in for it.
2. Its patch of that class is applied without ``--vllm`` too: it now patches the empty class.
3. Every actor asks Ray for a GPU and waits for ever where there is none: Ray is started with one
   pretended GPU. One CPU goes with it, so that Ray gives the actor one thread, and
   ``OMP_NUM_THREADS`` another number.
4. ``torch.cpu.empty_cache`` is called and does not exist: it does nothing here.
5. lm-eval's ``HFLM`` asks for CUDA unless told otherwise: its default is the CPU.
6. ``--in-memory`` alone: pydantic refuses the merge's ``Task[Optional[Tensor]]`` where
   ``ReturnTensor`` declares a ``Task[Tensor]``: it declares a ``Task``.

The times are one JSON line for every candidate: when its scoring began and ended
(``time.time()``), and its score. On disk, scoring includes loading the checkpoint.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any


def apply() -> None:
    """Makes the changes in this process: the driver's, and each of Ray's workers'."""
    import lm_eval.models
    import torch

    name = "lm_eval.models.vllm_causallms"
    if name not in sys.modules:  # 1 and 2
        module: Any = types.ModuleType(name)
        module.VLLM = type("VLLM", (), {})
        sys.modules[name] = lm_eval.models.vllm_causallms = module
    if not hasattr(torch.cpu, "empty_cache"):  # 4
        torch.cpu.empty_cache = lambda: None
    from lm_eval.models.huggingface import HFLM

    if not hasattr(HFLM, "_asked_for_cpu"):  # 5
        HFLM._asked_for_cpu, start = True, HFLM.__init__

        @functools.wraps(start)
        def on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
            start(self, *args, **{"device": "cpu", **kwargs})

        HFLM.__init__ = on_cpu
    from mergekit.graph import Task
    from mergekit.io.tasks import ReturnTensor

    ReturnTensor.model_fields["tensor_task"].annotation = Task  # 6
    ReturnTensor.model_rebuild(force=True)
    _note_times()


def _note_times() -> None:
    """Wraps the function that scores a candidate, whichever strategy calls it."""
    from mergekit.evo import helpers

    if hasattr(helpers, "_unwatched"):
        return
    helpers._unwatched = inner = helpers._eval_model

    @functools.wraps(inner)  # the same name, so that Ray's workers find their own wrapper
    def watched(*args: Any, **kwargs: Any) -> Any:
        begun = time.time()
        result = inner(*args, **kwargs)
        line = json.dumps({"begun": begun, "ended": time.time(), "score": result["score"]})
        with Path(os.environ["MERGEKIT_EVOLVE_TIMES"]).open("a") as file:
            file.write(line + "\n")
        return result

    helpers._eval_model = watched


def main() -> None:
    """mergekit-evolve's command line, after the changes."""
    import ray

    ray.init(
        address="local",
        num_cpus=1,
        num_gpus=1,  # 3
        include_dashboard=False,
        runtime_env={"worker_process_setup_hook": "mergekit_evolve_shims.apply"},
    )
    apply()
    from mergekit.scripts.evolve import main as evolve

    evolve()


if __name__ == "__main__":
    main()
