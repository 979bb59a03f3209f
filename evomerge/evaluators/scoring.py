"""Scores lm-eval requests on a live model whose weights change between candidates.

Requests are encoded and batched once. Per candidate only the forward passes are left: no
tokenisation, no progress bars, shared beginnings computed once, and logits only where a
continuation is scored. Encoding and
generation are those of lm-eval's own ``HFLM``, so the scores are too. An encoder-decoder is scored
by ``HFLM`` itself, request by request: right, and slower.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.errors import TaskError
from evomerge.evaluators.answers import measure
from evomerge.evaluators.batches import Batch, Encoded, Packing
from evomerge.evaluators.generation import Generations, Generator
from evomerge.evaluators.likelihoods import Likelihoods
from evomerge.evaluators.memory import half, in_pieces
from evomerge.evaluators.packing import check_encoded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclasses.dataclass
class Requests:
    """Everything that is asked on one split.

    Attributes:
        likelihoods: Instances whose answer is a log-likelihood; a batch's slots index them.
        encoded: Their tokens, until they are packed.
        batches: Their forward passes, packed when they are first needed: to pack them takes two.
        generations: What is answered by generated text, encoded.
    """

    likelihoods: list[Any]
    encoded: list[Encoded]
    batches: list[Batch]
    generations: Generations


class LiveModel:
    """A resident model seen through lm-eval's eyes.

    The model itself is used as it is: neither copied nor moved. The tokenizer is copied, because
    lm-eval gives it a padding token.

    Args:
        model: The resident model.
        tokenizer: Its tokenizer.
        batch_size: Requests per forward pass, or ``"auto"``: by number of tokens.
        max_length: Longest input in tokens; None for what the model allows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int | str,
        max_length: int | None,
    ) -> None:
        from lm_eval.models.huggingface import HFLM

        n_rows = 1 if isinstance(batch_size, str) else batch_size
        self._n_rows = [n_rows]
        self.lm = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=n_rows,
            max_length=max_length,
        )
        self._causal = self.lm.backend == "causal"
        if self._causal:
            # `loglikelihood` encodes and then calls this: so it returns the encoded requests.
            self.lm._loglikelihood_tokens = lambda requests, **_: requests
        self._generator = Generator(self.lm, batch_size)
        self._length = functools.lru_cache(2**16)(
            lambda text: len(self.lm.tok_encode(text, add_special_tokens=False))
        )
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self._scorer = Likelihoods(
            model, Packing(self.lm.max_length, batch_size, self.lm.device, self._vocabulary)
        )

    def encode(self, instances: Sequence[Any]) -> Requests:
        """Encodes and batches requests, once for all candidates.

        Args:
            instances: lm-eval instances of any tasks.

        Returns:
            What :meth:`answer` takes.

        Raises:
            TaskError: For a kind of request that lm-eval has but that is not scored here.
        """
        by_kind: dict[str, list[Any]] = {}
        for instance in instances:
            by_kind.setdefault(instance.request_type, []).append(instance)
        pairs = by_kind.pop("loglikelihood", [])
        rolling = by_kind.pop("loglikelihood_rolling", [])
        generations = by_kind.pop("generate_until", [])
        if by_kind:
            raise TaskError(f"requests of type {', '.join(by_kind)} cannot be scored.")
        encoded = []
        if self._causal:
            with self._remembering():
                asked = self.lm.loglikelihood(pairs, disable_tqdm=True) if pairs else []
            encoded = [(slot, *request[1:]) for slot, request in enumerate(asked)]
            for slot, instance in enumerate(rolling, start=len(pairs)):
                encoded += [(slot, *window) for window in self._windows(instance.args[0])]
        check_encoded(encoded, self.lm.max_length)
        return Requests([*pairs, *rolling], encoded, [], self._generator.encode(generations))

    def answer(self, model: PreTrainedModel, requests: Requests) -> None:
        """Puts the model's answers into the instances, in place of earlier ones.

        Args:
            model: The model with the candidate's weights, in evaluation mode.
            requests: From :meth:`encode`.

        Raises:
            FloatingPointError: When the model's outputs are not numbers.
        """
        self.lm._model = model
        for instance in (*requests.likelihoods, *requests.generations.instances):
            instance.resps = []
            instance.filtered_resps = {}
        totals, greedy = self._likelihoods(model, requests)
        if np.isnan(totals).any():
            raise FloatingPointError(
                f"the merged model's log-likelihoods are not numbers (NaN) for "
                f"{int(np.isnan(totals).sum())} of {len(totals)} requests: its weights overflowed."
            )
        for instance, total, exact in zip(requests.likelihoods, totals, greedy, strict=True):
            rolling = instance.request_type == "loglikelihood_rolling"
            answer = float(total) if rolling else (float(total), bool(exact))
            instance.resps = [answer] * (instance.repeats or 1)
        self._generator.answer(model, requests.generations)

    def measure(self, metrics: Collection[str], instances: Sequence[Any]) -> dict[str, float]:
        """Measures one document's answers; see :func:`evomerge.evaluators.answers.measure`."""
        return measure(metrics, instances, self._length, self._vocabulary)

    def _likelihoods(
        self, model: PreTrainedModel, requests: Requests
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Log-likelihood and whether it is the greedy continuation, per slot."""
        if not self._causal:
            return self._stock_likelihoods(requests.likelihoods)
        n = len(requests.likelihoods)
        batches = requests.batches
        if requests.encoded:
            batches, settled = self._scorer.pack(model, requests.encoded)
            if settled:
                requests.batches, requests.encoded = batches, []
        greedy = any(i.request_type == "loglikelihood" for i in requests.likelihoods)
        return self._scorer.score(model, batches, n, greedy=greedy)

    def _stock_likelihoods(
        self, instances: Sequence[Any]
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The same by ``HFLM`` itself."""

        def ask(n_rows: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
            totals, greedy = np.zeros(len(instances)), np.zeros(len(instances), dtype=bool)
            self.lm.batch_size_per_gpu = n_rows
            for kind in ("loglikelihood", "loglikelihood_rolling"):
                slots = [
                    i for i, instance in enumerate(instances) if instance.request_type == kind
                ]
                asked = [instances[i] for i in slots]
                answers = getattr(self.lm, kind)(asked, disable_tqdm=True) if asked else []
                for slot, answer in zip(slots, answers, strict=True):
                    totals[slot], greedy[slot] = (
                        answer if isinstance(answer, tuple) else (answer, False)
                    )
            return totals, greedy

        (answers,) = in_pieces(self._n_rows, ask, half)
        return answers

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        """A context is encoded once, and not again for every choice."""
        self.lm.tok_encode = functools.cache(self.lm.tok_encode)
        try:
            yield
        finally:
            del self.lm.tok_encode

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """The rolling windows of a text, as ``HFLM.loglikelihood_rolling`` makes them."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows = get_rolling_token_windows(
            token_list=self.lm.tok_encode(text),
            prefix_token=self.lm.prefix_token_id,
            max_seq_len=self.lm.max_length,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in windows]
