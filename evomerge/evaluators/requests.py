"""What a task asks about a list of its documents, and what it makes of the answers.

This is the part of the stock harness's loop around the model, for documents that were chosen by
their indices; it keeps to the order in which the harness does things, because few-shot examples
are drawn from one stream of random numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from evomerge.errors import TaskError
from evomerge.evaluators.options import Options
from evomerge.evaluators.splits import Sizes, assign, content_hash, digest
from evomerge.evaluators.tasks import TaskSource, lean
from evomerge.trial import SPLITS, Split


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked of one task: settled in the driver, the same in every worker.

    Attributes:
        source: Where the task is defined.
        ids: Split to the ascending indices of its documents among the task's documents.
        content: Split to the hash of those documents.
        config: Hash of the task's configuration, first prompt and few-shot pool.
    """

    source: TaskSource
    ids: Mapping[Split, tuple[int, ...]]
    content: Mapping[Split, str]
    config: str


def plan_task(source: TaskSource, task: Any, options: Options, sizes: Sizes, seed: int) -> Plan:
    """Deals a task's documents to the splits and makes sure that it can be asked.

    Raises:
        TaskError: For too few documents, or when no prompt can be built.
    """
    hashes = [content_hash(document) for document in task.eval_docs]
    ids = assign(source.name, hashes, sizes, seed)
    content = {split: digest(hashes[i] for i in ids[split]) for split in SPLITS}
    return Plan(source, ids, content, _task_hash(source, task, options))


def documents_hash(instances: Sequence[Any]) -> str:
    """``Plan.content`` of the documents that instances ask about."""
    documents = {instance.doc_id: instance.doc for instance in instances}
    return digest(content_hash(documents[k]) for k in sorted(documents))


def build_requests(
    task: Any,
    ids: Sequence[int],
    options: Options,
    chat_template: Callable[..., str] | None = None,
) -> list[Any]:
    """Builds the requests of some documents as ``lm_eval --samples`` does.

    Args:
        task: The lm-eval task.
        ids: Ascending indices of documents, at least one.
        options: How prompts are built.
        chat_template: Renders a conversation; needed if ``options.apply_chat_template``.

    Returns:
        Instances; their ``doc_id`` counts from 0 within ``ids``.
    """
    with lean():
        task.set_fewshot_seed(options.fewshot_seed)
        task.build_all_requests(
            samples=frozenset(ids),  # only asked "contains" and "all below n"; a list is O(n^2)
            rank=0,
            world_size=1,
            system_instruction=options.system_instruction,
            apply_chat_template=bool(options.apply_chat_template),
            fewshot_as_multiturn=options.multiturn,
            chat_template=chat_template,
        )
    return list(task.instances)


def process(
    task: Any,
    instances: Sequence[Any],
    filters: Collection[str],
    measured: Callable[[Sequence[Any]], Mapping[str, float]] | None = None,
) -> dict[str, list[Mapping[str, Any]]]:
    """Filters the answers in ``instances`` and scores each document.

    Args:
        task: The lm-eval task.
        instances: From :func:`build_requests`, with answers in ``resps``.
        filters: Names of the filters that are wanted.
        measured: Gives further metrics from all instances of one document.

    Returns:
        Filter to one mapping of metric to score per document, in the order of the documents.
    """
    task._instances = list(instances)
    task.apply_filters()
    by_document: dict[int, list[Any]] = {}
    for instance in instances:
        by_document.setdefault(instance.doc_id, []).append(instance)
    groups = [sorted(by_document[k], key=lambda i: i.idx) for k in sorted(by_document)]
    rows = [{} if measured is None else measured(group) for group in groups]
    return {
        name: [
            task.process_results(group[0].doc, [i.filtered_resps[name] for i in group]) | row
            for group, row in zip(groups, rows, strict=True)
        ]
        for name in filters
    }


def _task_hash(source: TaskSource, task: Any, options: Options) -> str:
    """Hash of everything but its documents that decides what a task asks and how it scores.

    Building the first prompt tells whether the few-shot settings work at all.

    Args:
        source: Where the task is defined.
        task: The lm-eval task.
        options: How prompts are built.

    Raises:
        TaskError: When no prompt can be built, for example because more few-shot examples are
            asked for than there are.
    """
    config = task.dump_config()
    for where in ("metadata", "dataset_kwargs", "dataset_path", "dataset_name"):
        config.pop(where, None)
    shots = int(task.get_config("num_fewshot") or 0)
    try:
        with lean():
            task.set_fewshot_seed(options.fewshot_seed)
            prompt = task.fewshot_context(task.eval_docs[0], num_fewshot=shots)
            pool = [content_hash(d) for d in task.fewshot_docs() or ()] if shots else []
    except Exception as err:
        raise TaskError(
            f"task {source.name!r}: no prompt with {shots} few-shot examples can be built: "
            f"{type(err).__name__}: {err}"
        ) from err
    return content_hash([config, prompt, pool])
