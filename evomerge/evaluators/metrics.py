"""From what lm-eval collects per document to a value, its standard error and per-document values.

Values come from the task's own aggregation, so they equal the stock harness. lm-eval collects
different things for different metrics; raw per-document values here are in the metric's own
direction:

============================  ==================================================================
aggregation                   per-document value
============================  ==================================================================
mean, nanmean (acc, ...)      the document's own score
bits_per_byte                 -log-likelihood / bytes / ln 2
perplexity                    -log-likelihood in nats (the mean's exponential is the metric)
weighted_perplexity           -log-likelihood per word or byte, in nats
brier_score                   the document's squared distance
others (f1, mcc, bleu, ...)   None: a corpus metric has no per-document value
============================  ==================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from lm_eval.api import metrics as stock

from evomerge.errors import TaskError
from evomerge.trial import Objective, Scores

Array = npt.NDArray[np.float64]


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
        per_unit: Array = -ll / weight
        return per_unit / math.log(2) if aggregate is stock.bits_per_byte else per_unit
    if any(np.ndim(item) or isinstance(item, str) for item in items):
        return None
    values = np.array(items, dtype=np.float64)
    return -values if aggregate is stock.perplexity else values


def standard_error(aggregate: Callable[..., Any], items: Sequence[Any]) -> float:
    """Standard error of the aggregated value over the draw of documents.

    For means the sample standard deviation over sqrt(n), as in lm-eval. For ratios of sums
    (bits_per_byte, weighted_perplexity) the linearised ratio estimator, and for exponentials the
    delta method; lm-eval gives none for these, or bootstraps.

    Args:
        aggregate: The metric's aggregation.
        items: What ``process_results`` gave for the metric, one entry per document.

    Returns:
        The standard error, >= 0; NaN where it is not known (corpus metrics, one document).
    """
    n = len(items)
    if n < 2:
        return math.nan
    if aggregate in {stock.bits_per_byte, stock.weighted_perplexity}:
        ll, weight = np.array(items, dtype=np.float64).T
        ratio = ll.sum() / weight.sum()
        residual = ll - ratio * weight
        error = math.sqrt(n / (n - 1) * float(residual @ residual)) / float(weight.sum())
        if aggregate is stock.bits_per_byte:
            return error / math.log(2)
        return error * math.exp(-ratio)
    if aggregate not in {stock.mean, stock.nanmean, stock.perplexity, stock.brier_score}:
        return math.nan
    values = per_document(aggregate, items)
    if values is None:
        return math.nan
    if aggregate is stock.nanmean:
        values = values[~np.isnan(values)]
        n = len(values)
        if n < 2:
            return math.nan
    error = float(values.std(ddof=1)) / math.sqrt(n)
    return error * math.exp(float(values.mean())) if aggregate is stock.perplexity else error


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
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise FloatingPointError(f"objective {o.name!r}: its {o.metric} is not finite.")
        values[o.name] = value
        errors[o.name] = standard_error(aggregate, items)
        documents = per_document(aggregate, items)
        examples[o.name] = None
        if documents is not None:
            column = np.full(len(rows), np.nan, dtype=np.float32)
            column[given] = o.sign * documents
            examples[o.name] = column
    return Scores(values=values, stderr=errors, per_example=examples)
