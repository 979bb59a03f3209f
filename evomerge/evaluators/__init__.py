"""Evaluators: live model in, scores out.

* :mod:`~evomerge.evaluators.base`: the :class:`Evaluator` protocol.
* :mod:`~evomerge.evaluators.lm_eval`: any lm-eval task, scored as the stock harness scores it.
* :mod:`~evomerge.evaluators.weights`: how far the weights are from the base's.
* :mod:`~evomerge.evaluators.together`: both beside each other.

What ``lm_eval`` is made of:

* :mod:`~evomerge.evaluators.options`: what can be set, checked.
* :mod:`~evomerge.evaluators.tasks`: finds a task's YAML, loads it, checks what is asked of it.
* :mod:`~evomerge.evaluators.splits`: which documents belong to search, select and test.
* :mod:`~evomerge.evaluators.requests`: what a task asks, and what it makes of the answers.
* :mod:`~evomerge.evaluators.asked`: one split of it, encoded, and its scores.
* :mod:`~evomerge.evaluators.packing`: log-likelihood requests laid out as batches, once.
* :mod:`~evomerge.evaluators.batches`: what a batch is.
* :mod:`~evomerge.evaluators.likelihoods`: their log-likelihoods on the model that is loaded now.
* :mod:`~evomerge.evaluators.scoring`: answers from the model that is loaded now.
* :mod:`~evomerge.evaluators.generation`: those that are generated: whom to ask what, and how.
* :mod:`~evomerge.evaluators.greedy`: which of them a loop of our own may decode.
* :mod:`~evomerge.evaluators.decoding`: that loop.
* :mod:`~evomerge.evaluators.stops`: when an answer is over.
* :mod:`~evomerge.evaluators.memory`: what happens when a batch does not fit.
* :mod:`~evomerge.evaluators.answers`: what is measured on the answers of any task.
* :mod:`~evomerge.evaluators.metrics`: value, standard error and per-document values.
* :mod:`~evomerge.evaluators.command`: the stock command line that gives the same scores.

Nothing heavy is imported here; lm-eval and torch are imported when an evaluator is built.
"""
