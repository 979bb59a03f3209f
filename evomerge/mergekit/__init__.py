"""mergekit's files, read and written.

* :mod:`~evomerge.mergekit.config`: what a mergekit configuration says.
* :mod:`~evomerge.mergekit.translate`: recipe <-> mergekit configuration.
* :mod:`~evomerge.mergekit.evolve`: a mergekit-evolve configuration -> a search of ours.
"""

from __future__ import annotations

from evomerge.mergekit.evolve import import_evolve
from evomerge.mergekit.translate import METHODS, Imported, from_mergekit, to_mergekit

__all__ = ["METHODS", "Imported", "from_mergekit", "import_evolve", "to_mergekit"]
