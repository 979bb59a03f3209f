"""What the doctor says of one model, in words a user understands."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is worth knowing.

    Attributes:
        model: The model that it is about; ``""`` for all of them together.
        kind: A word that programs can compare: ``"architecture"``, ``"added tokens"``, ...
        blocks: True where the model cannot be merged as it is, or where that would be pointless.
        text: What was found, in whole sentences.
        remedy: What to do about it; may be empty.
    """

    model: str
    kind: str
    blocks: bool
    text: str
    remedy: str = ""
