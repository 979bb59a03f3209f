"""Generated answers: prompts encoded once, and per candidate little more than forward passes.

What is plain greedy decoding, by far the most of what tasks ask, goes through a loop of its own
(:mod:`evomerge.evaluators.decoding`), which gives the answers that ``HFLM.generate_until`` gives
with a batch size of 1. (With larger batches lm-eval goes on generating until all rows have met the
same stop, and so may keep text behind a stop that is a special token.) Everything else, sampling,
beams, penalties, encoder-decoders, state-space models, code from the Hub, goes through
``HFLM.generate_until`` itself, seeded.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from evomerge.errors import TaskError
from evomerge.evaluators.batches import tokens_per_batch
from evomerge.evaluators.decoding import Greedy, Prompt
from evomerge.evaluators.greedy import (
    bytes_per_token,
    greedy_ends,
    layers_of,
    narrowest_window,
)
from evomerge.evaluators.memory import half, in_pieces
from evomerge.evaluators.packing import common
from evomerge.evaluators.stops import Stops

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLING_SEED = 1234
"""lm-eval's default torch seed: every candidate draws the same random numbers."""

CACHE_BYTES = {"cpu": 2**29, "cuda": 2**33}
"""Keys and values of one batch under ``batch_size="auto"``, by device type."""

MOST_ROWS = 256
"""Prompts of one batch under ``batch_size="auto"``: more do not make a step cheaper per row."""

SHORTEST_SHARED = 16
"""Tokens that all prompts must begin with to be read once, by a forward pass of their own."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Prompts of one task, to be continued greedily by the same rules.

    Attributes:
        prompts: Distinct token ids, longest first.
        instances: Per prompt, the instances that ask it.
        n_shared: Tokens that all prompts begin with and that are read once; 0 for none.
        n_new: Most tokens per answer.
        batches: Their rows, batch by batch.
        stops: What ends an answer.
    """

    prompts: tuple[Prompt, ...]
    instances: tuple[tuple[Any, ...], ...]
    n_shared: int
    n_new: int
    batches: list[range]
    stops: Stops


@dataclasses.dataclass(frozen=True)
class Generations:
    """The generating requests of one split.

    Attributes:
        groups: Those that are decoded here.
        others: Instances that are answered by ``HFLM.generate_until``.
        probe: (1, L) input ids of one of those, to notice broken weights; None without any.
        n_rows: Prompts per batch of ``HFLM``, the only entry; what does not fit is halved.
    """

    groups: tuple[Group, ...]
    others: tuple[Any, ...]
    probe: torch.Tensor | None
    n_rows: list[int]

    @property
    def instances(self) -> list[Any]:
        """All of them."""
        asked = (i for group in self.groups for askers in group.instances for i in askers)
        return [*asked, *self.others]


class Generator:
    """Answers generating requests with a resident model.

    Args:
        lm: lm-eval's view of the model.
        batch_size: Prompts per batch, or ``"auto"``: by memory.
    """

    def __init__(self, lm: Any, batch_size: int | str) -> None:
        self._lm, self._batch_size = lm, batch_size
        self._n_layers = layers_of(lm)

    def encode(self, instances: Sequence[Any]) -> Generations:
        """Encodes requests once for all candidates.

        Args:
            instances: lm-eval instances of type ``generate_until``.

        Returns:
            What :meth:`answer` takes.

        Raises:
            TaskError: When an answer would leave no room for its prompt.
        """
        alike: dict[tuple[str | None, str], list[Any]] = {}
        for instance in instances:
            rules = json.dumps(instance.args[1], sort_keys=True, default=repr)
            alike.setdefault((instance.task_name, rules), []).append(instance)
        groups: list[Group] = []
        others: list[Any] = []
        for members in alike.values():
            group = self._group(members)
            if group is None:
                others += members
            else:
                groups.append(group)
        if not others:
            return Generations(tuple(groups), (), None, [])
        probe, _ = self._lm.tok_batch_encode([others[0].args[0]])
        probe = probe[:, -self._lm.max_length :].to(self._lm.device)
        return Generations(tuple(groups), tuple(others), probe, [self._prompts_per_batch(others)])

    def answer(self, model: PreTrainedModel, generations: Generations) -> None:
        """Appends the model's answers to the instances' ``resps``.

        Args:
            model: The model with the candidate's weights, in evaluation mode.
            generations: From :meth:`encode`.

        Raises:
            FloatingPointError: When logits are not finite.
        """
        if generations.groups:
            greedy = Greedy(
                model,
                self._n_layers or 0,
                frozenset(inspect.signature(model.forward).parameters),
                self._lm.device,
                tokens_per_batch(self._lm.device),
            )
            for group in generations.groups:
                self._decode(greedy, group)
        if generations.others:
            self._stock(model, generations)

    def _group(self, instances: Sequence[Any]) -> Group | None:
        """Instances with the same rules as a group; None if they cannot be decoded here."""
        from lm_eval.models.utils import normalize_gen_kwargs

        lm = self._lm
        given = dict(normalize_gen_kwargs(instances[0].args[1], lm.max_gen_toks))
        until, n_new = given.pop("until"), int(given.pop("max_gen_toks"))
        room = int(lm.max_length) - n_new
        if lm.backend == "causal" and room <= 0:
            raise TaskError(
                f"task {instances[0].task_name!r} generates up to {n_new} tokens, which leaves no "
                f"room for a prompt in {lm.max_length}. Set evaluator.gen_kwargs.max_gen_toks to "
                "less, or evaluator.max_length to more."
            )
        ends = greedy_ends(lm, given) if self._n_layers and n_new > 0 else None
        if ends is None:
            return None
        askers: dict[Prompt, list[Any]] = {}
        for instance in instances:
            ids, _ = lm.tok_batch_encode([instance.args[0]], left_truncate_len=room)
            askers.setdefault(tuple(ids[0].long().tolist()), []).append(instance)
        prompts = sorted(askers, key=lambda p: (-len(p), p))
        if not prompts[-1]:
            return None  # an empty prompt: transformers decides what it begins with
        longest = len(prompts[0]) + n_new
        shared = min(common(min(prompts), max(prompts)), len(prompts[-1]) - 1)
        # Sliding windows count columns, and a gap behind the shared part would be counted too.
        worthwhile = (
            len(prompts) > 1 and shared >= SHORTEST_SHARED and longest <= narrowest_window(lm)
        )
        return Group(
            tuple(prompts),
            tuple(tuple(askers[prompt]) for prompt in prompts),
            shared if worthwhile else 0,
            n_new,
            self._batches(len(prompts), longest),
            Stops(lm.tokenizer, until, ends),
        )

    def _decode(self, greedy: Greedy, group: Group) -> None:
        """Answers a group, batch by batch."""

        def extend(rows: range) -> None:
            prompts = [group.prompts[row] for row in rows]
            answers = greedy.extend(prompts, group.n_shared, group.n_new, group.stops.ended)
            for row, tokens in zip(rows, answers, strict=True):
                text = group.stops.text(tokens)
                for instance in group.instances[row]:
                    instance.resps += [text] * (instance.repeats or 1)

        in_pieces(group.batches, extend, _halves)

    def _stock(self, model: PreTrainedModel, generations: Generations) -> None:
        """Generates with lm-eval's own loop."""
        given: dict[str, Any] = {}
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            given["logits_to_keep"] = 1
        if self._lm.backend != "causal":
            given["decoder_input_ids"] = generations.probe
        if not bool(
            torch.isfinite(model(input_ids=generations.probe, **given).logits[:, -1]).all()
        ):
            raise FloatingPointError(
                "the merged model's logits are not finite: its weights overflowed."
            )
        repeated = [i for i in generations.others for _ in range(i.repeats or 1)]
        device = self._lm.device

        def generate(n_rows: int) -> list[str]:
            self._lm.batch_size_per_gpu = n_rows
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(SAMPLING_SEED)
                return list(self._lm.generate_until(repeated, disable_tqdm=True))

        (texts,) = in_pieces(generations.n_rows, generate, half)
        for instance, text in zip(repeated, texts, strict=True):
            instance.resps.append(text)

    def _batches(self, n: int, n_columns: int) -> list[range]:
        """Rows of n prompts, batch by batch, for the loop here."""
        at_once = self._batch_size
        if isinstance(at_once, str):
            budget = CACHE_BYTES.get(self._lm.device.type, CACHE_BYTES["cpu"])
            per_row = n_columns * bytes_per_token(self._lm.model)
            at_once = max(1, min(MOST_ROWS, budget // per_row))
        return [range(n)[start : start + at_once] for start in range(0, n, at_once)]

    def _prompts_per_batch(self, instances: Sequence[Any]) -> int:
        """Prompts per batch of lm-eval's loop."""
        if not isinstance(self._batch_size, str):
            return self._batch_size
        lm = self._lm
        longest = max(len(lm.tok_encode(i.args[0])) for i in instances)
        new = max(int(i.args[1].get("max_gen_toks", lm.max_gen_toks)) for i in instances)
        return max(1, tokens_per_batch(lm.device) // min(longest + new, int(lm.max_length)))


def _halves(rows: range) -> Sequence[range]:
    """The first and the second half of the rows; nothing where there is only one."""
    middle = len(rows) // 2
    return (rows[:middle], rows[middle:]) if middle else ()
