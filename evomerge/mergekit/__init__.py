"""mergekit's files, read and written.

* :mod:`~evomerge.mergekit.config`: reading a configuration's keys, models and slices.
* :mod:`~evomerge.mergekit.plan`: the value of a parameter at a tensor.
* :mod:`~evomerge.mergekit.table`: what its merge methods and their parameters are called.
* :mod:`~evomerge.mergekit.runs`: layers that are merged alike.
* :mod:`~evomerge.mergekit.read`: mergekit configuration -> recipe.
* :mod:`~evomerge.mergekit.write`: recipe -> mergekit configuration.
* :mod:`~evomerge.mergekit.evolve`: a mergekit-evolve configuration -> a search of ours.
"""

from __future__ import annotations

from evomerge.mergekit.evolve import import_evolve
from evomerge.mergekit.read import Imported, from_mergekit
from evomerge.mergekit.table import METHODS
from evomerge.mergekit.write import to_mergekit

__all__ = ["METHODS", "Imported", "from_mergekit", "import_evolve", "to_mergekit"]
