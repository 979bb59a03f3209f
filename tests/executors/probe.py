"""An evaluator that really runs the model, and misbehaves for the recipes it is told to."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from evomerge.errors import TaskError
from evomerge.trial import Objective, Scores

TOKENS = torch.arange(1, 41).reshape(4, 10)


class Probe:
    """Scores the mean log-likelihood of four fixed sequences.

    Args:
        folder: Where ``<recipe id>`` files are written, one line with the process id for every
            evaluation that began.
        deeds: Recipe id to what to do instead: ``raise``, ``exit``, ``hang``, ``warn``, ``slow``;
            with ``once-`` in front only at the first attempt.
        prepare: ``error``, ``crash``, ``exit``, ``second`` (the second worker that is built
            crashes) or ``slow``.
    """

    objectives = (Objective("loss", "none", "loglikelihood"),)

    def __init__(
        self, folder: Path, deeds: Mapping[str, str] | None = None, prepare: str = ""
    ) -> None:
        self.folder, self.deeds, self.how = folder, dict(deeds or {}), prepare
        self.threads = 0

    def prepare(self, model, tokenizer) -> None:
        with (self.folder / "prepared").open("a") as f:
            f.write(f"{os.getpid()}\n")
        n = len((self.folder / "prepared").read_text().split())
        if self.how == "error":
            raise TaskError("no such documents")
        if self.how == "crash" or (self.how == "second" and n > 1):
            raise RuntimeError("no memory left")
        if self.how == "exit":
            os._exit(7)
        if self.how == "slow":
            time.sleep(4)
        self.threads = torch.get_num_threads()

    def evaluate(self, model, recipe, split, bar=None) -> Scores:
        file = self.folder / recipe.id
        first = not file.exists()
        with file.open("a") as f:
            f.write(f"{os.getpid()}\n")
        deed = self.deeds.get(recipe.id, "")
        if first or not deed.startswith("once-"):
            self._do(deed.removeprefix("once-"))
        with torch.inference_mode():
            logp = torch.log_softmax(model(TOKENS).logits[:, :-1], dim=-1)
            each = logp.gather(-1, TOKENS[:, 1:, None]).mean(dim=(1, 2))
        values = {"loss": float(each.mean()), "threads": self.threads, "pid": os.getpid()}
        return Scores(
            values={k: float(v) for k, v in values.items()},
            stderr=dict.fromkeys(values, 0.0),
            per_example={"loss": each.numpy().astype("float32"), "threads": None, "pid": None},
        )

    def _do(self, deed: str) -> None:
        if deed == "raise":
            raise ArithmeticError("seven is not eight")
        if deed == "exit":
            os._exit(9)
        if deed == "hang":
            time.sleep(1000)
        if deed == "slow":
            time.sleep(2)
        if deed == "warn":
            logging.getLogger("somewhere").warning("3 requests lose their beginning")

    def documents(self, split) -> dict[str, int]:
        return {"loss": 4}

    def fingerprint(self) -> dict[str, str]:
        return {"evaluator": "probe"}
