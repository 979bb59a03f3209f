"""evomerge: search for the coefficients of a model merge.

Floors, each importing only lower ones (``tests/test_architecture.py`` holds them):

1. :mod:`evomerge.errors`, :mod:`evomerge.pareto`
2. :mod:`evomerge.recipe`, :mod:`evomerge.methods`
3. :mod:`evomerge.trial`, :mod:`evomerge.space`, :mod:`evomerge.experts`
4. :mod:`evomerge.materialize`, :mod:`evomerge.store`, :mod:`evomerge.optimizers`,
   :mod:`evomerge.evaluators`
5. :mod:`evomerge.executors`, :mod:`evomerge.report`, :mod:`evomerge.export`
6. :mod:`evomerge.study`, :mod:`evomerge.zoo`
7. :mod:`evomerge.cli`
"""

__version__ = "0.1.0"
