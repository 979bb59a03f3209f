"""When an answer is over, and what of it counts: as lm-eval decides both, without its cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Stops:
    """End-of-text tokens and stop sequences of one task.

    lm-eval decodes the last tokens of every row at every step, once per stop sequence. Here a
    token's own text tells, once for all candidates, whether it can be the last of a stop; only
    then are the last tokens decoded. A stop that is overlooked this way costs time and nothing
    else, because the finished text is cut at the first stop in any case.

    Args:
        tokenizer: The tokenizer; its end-of-text token is a stop sequence too, as in lm-eval.
        until: The task's stop sequences.
        ends: Token ids that end an answer.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str], ends: frozenset[int]) -> None:
        from lm_eval.models.utils import handle_stop_sequences

        eos = tokenizer.decode(tokenizer.eos_token_id, skip_special_tokens=False)
        self._tokenizer, self._ends = tokenizer, ends
        self._until: list[str] = handle_stop_sequences(list(until), eos=eos)
        # As many tokens as lm-eval's MultiTokenEOSCriteria looks back.
        self._windows: dict[int, list[str]] = {}
        for stop in self._until:
            n = len(tokenizer.encode(stop, add_special_tokens=False)) + 2
            self._windows.setdefault(n, []).append(stop)
        self._last = {stop[-1:] for stop in self._until}
        self._space = any(character.isspace() for character in self._last)
        self._suspicious: dict[int, bool] = {}

    def ended(self, tokens: list[int]) -> bool:
        """Whether the last of these generated tokens ends the answer."""
        last = tokens[-1]
        if last in self._ends:
            return True
        suspicious = self._suspicious.get(last)
        if suspicious is None:
            suspicious = self._suspicious[last] = self._may_end(last)
        return suspicious and any(
            stop in text
            for n, stops in self._windows.items()
            for text in (self._tokenizer.decode(tokens[-n:]),)
            for stop in stops
        )

    def text(self, tokens: Sequence[int]) -> str:
        """The answer: these tokens as text, without special ones, up to the first stop."""
        from lm_eval.models.utils import postprocess_generated_text

        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return str(postprocess_generated_text(text, self._until, None))

    def _may_end(self, token: int) -> bool:
        """Whether a token can hold the last character of a stop sequence."""
        text = self._tokenizer.decode([token])
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return (
            piece is None
            or token in self._tokenizer.all_special_ids
            or "\N{REPLACEMENT CHARACTER}" in text  # part of a character
            or (self._space and not piece.isalnum())  # a decoder may drop a leading space
            or any(character in text for character in self._last)
        )
