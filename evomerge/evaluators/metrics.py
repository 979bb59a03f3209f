"""From what lm-eval collects per document to a value, its standard error and per-document values.

Values come from the task's own aggregation, so they equal the stock harness. Per-document values
are in the metric's own direction and units, and their mean is the metric: for a mean the
document's own score, for a metric that is no mean its linearisation (the delta method), so that a
paired difference of two candidates has the right size and the right standard error.

============================  ==================================================================
aggregation                   value of document i, with loss l_i = -log-likelihood and weight w_i
============================  ==================================================================
mean, nanmean (acc, ...)      its own score
bits_per_byte                 B + (l_i / ln 2 - B w_i) / mean(w), B the metric, w_i its bytes
perplexity                    P (1 + l_i - mean(l)), P the metric
weighted_perplexity           P (1 + (l_i - log(P) w_i) / mean(w)), w_i its words or bytes
brier_score                   its squared distance
others (f1, mcc, bleu, ...)   None: a corpus metric has no per-document value
============================  ==================================================================
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from lm_eval.api import metrics as stock

from evomerge.errors import TaskError
from evomerge.trial import Objective, Scores

Array = npt.NDArray[np.float64]


@functools.lru_cache(maxsize=256)
def is_mean(aggregate: Callable[..., Any]) -> bool:
    """Whether an aggregation is the mean, under whatever name a task has for it."""
    try:
        return math.isclose(float(aggregate([0.0, 1.0, 5.0])), 2.0)
    except Exception:  # noqa: BLE001 - a task's own code, which may want more than numbers
        return False


def per_document(aggregate: Callable[..., Any], items: Sequence[Any]) -> Array | None:
    """Raw per-document values.

    Args:
        aggregate: The metric's aggregation.
        items: What ``process_results`` gave for the metric, one entry per document.

    Returns:
        (n,) values as in the table above, or None for a corpus metric.
    """
    if aggregate is stock.brier_score:
        return np.array([((np.eye(len(p))[g] - np.asarray(p)) ** 2).sum() for g, p in items])
    if aggregate in {stock.bits_per_byte, stock.weighted_perplexity}:
        ll, weight = np.array(items, dtype=np.float64).T
        rate = -ll.sum() / weight.sum()
        change: Array = (-ll - rate * weight) / weight.mean()
        if aggregate is stock.bits_per_byte:
            return np.asarray((rate + change) / math.log(2), dtype=np.float64)
        return np.asarray(math.exp(rate) * (1 + change), dtype=np.float64)
    if any(np.ndim(item) or isinstance(item, str) for item in items):
        return None
    values = np.array(items, dtype=np.float64)
    if aggregate is stock.perplexity:
        return np.asarray(math.exp(-values.mean()) * (1 + values.mean() - values))
    return values if is_mean(aggregate) else None


def is_documented(aggregate: Callable[..., Any]) -> bool:
    """Whether a metric is made of one score per document: a mean of them, or a weighted one.

    Not so BLEU, F1 over a corpus, Matthews correlation or perplexity: what one document adds to
    them depends on the others. An aggregation that nobody knows is tried on four numbers.
    """
    if aggregate in {stock.brier_score, stock.bits_per_byte}:
        return True
    items = [0.0, 1.0, 1.0, 0.25]
    try:
        return bool(abs(float(aggregate(items)) - np.mean(items)) < 1e-9)
    except Exception:  # noqa: BLE001 - it wants other items: pairs, texts
        return False


def rates(aggregate: Callable[..., Any], items: Sequence[Any]) -> tuple[Array, Array | None]:
    """What a documented metric is a mean of, over any documents.

    Args:
        aggregate: The metric's aggregation; :func:`is_documented`.
        items: What ``process_results`` gave for the metric, one entry per document.

    Returns:
        (n,) raw scores, and their (n,) weights where these differ: bits per byte of a document
        weigh by its bytes.
    """
    if aggregate is stock.bits_per_byte:
        ll, size = np.array(items, dtype=np.float64).reshape(-1, 2).T
        return -ll / size / math.log(2), size
    values = per_document(aggregate, items)
    assert values is not None  # noqa: S101 - it is documented
    return values, None


def standard_error(aggregate: Callable[..., Any], items: Sequence[Any]) -> float:
    """Standard error of the aggregated value over the draw of documents.

    The sample standard deviation of the per-document values over sqrt(n): lm-eval's own for
    means, and for the other metrics the delta method, where lm-eval gives none or bootstraps.

    Args:
        aggregate: The metric's aggregation.
        items: What ``process_results`` gave for the metric, one entry per document.

    Returns:
        The standard error, >= 0; NaN where it is not known (corpus metrics, one document).
    """
    linear = {stock.brier_score, stock.perplexity, stock.weighted_perplexity, stock.bits_per_byte}
    if aggregate not in linear and not is_mean(aggregate):
        return math.nan
    values = per_document(aggregate, items)
    if values is None:
        return math.nan
    if aggregate is stock.nanmean:
        values = values[~np.isnan(values)]
    if len(values) < 2:
        return math.nan
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def scores_from(
    objectives: Sequence[Objective],
    results: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    aggregations: Mapping[str, Mapping[str, Callable[..., Any]]],
) -> Scores:
    """Scores from what each task said about each document.

    Args:
        objectives: What is asked.
        results: (task, filter) to one mapping of metric to collected item per document.
        aggregations: Task to the aggregations that it declares; lm-eval's default is the mean.

    Returns:
        Signed values, standard errors and per-document values.

    Raises:
        FloatingPointError: For a value that is not finite.
        TaskError: For a metric that the task did not give.
    """
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    examples: dict[str, npt.NDArray[np.float32] | None] = {}
    for o in objectives:
        rows = results[o.task, o.filter]
        given = np.array([o.metric in row for row in rows])
        if not given.any():
            known = ", ".join(sorted({metric for row in rows for metric in row}))
            raise TaskError(
                f"objective {o.name!r}: task {o.task!r} gave no metric {o.metric!r}; it gave: "
                f"{known}."
            )
        items = [row[o.metric] for row in rows if o.metric in row]
        aggregate = aggregations[o.task].get(o.metric, stock.mean)
        try:
            value = o.sign * float(aggregate(items))
            documents = per_document(aggregate, items)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise FloatingPointError(f"objective {o.name!r}: its {o.metric} is not finite.")
        values[o.name] = value
        errors[o.name] = standard_error(aggregate, items)
        examples[o.name] = None
        if documents is not None:
            column = np.full(len(rows), np.nan, dtype=np.float32)
            column[given] = o.sign * documents
            examples[o.name] = column
    return Scores(values=values, stderr=errors, per_example=examples)
