"""A recipe -> a checkpoint that anyone can load.

The folder holds sharded safetensors, the configuration and tokenizer of the base model (of the
first expert where there is no base), ``recipe.yaml``, ``mergekit.yaml`` where mergekit computes
the same, and a model card. Tensors are merged and written one by one, so memory holds one tensor.
It is written beside its destination and renamed when every byte is on disk: a folder that has the
name is complete. What a killed export had finished is kept for the next one.

* :mod:`~evomerge.export.write`: the export as a whole.
* :mod:`~evomerge.export.shards`: the weights, file by file, and which files are there already.
* :mod:`~evomerge.export.destination`: the hidden folder, its lock, and how it takes its name.
* :mod:`~evomerge.export.push`: an export -> the hub.
"""

from __future__ import annotations

from evomerge.card import ModelCard
from evomerge.export.push import push
from evomerge.export.write import export, located, pool_of

__all__ = ["ModelCard", "export", "located", "pool_of", "push"]
