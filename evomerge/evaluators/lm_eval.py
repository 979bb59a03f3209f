"""Any lm-eval task as objectives, scored on a live model as the stock harness scores it.

The harness is built to score one checkpoint once; a search scores hundreds of candidates on one
resident model. So tasks are resolved and their documents dealt to splits once, in the driver;
requests are built and encoded once per worker; and per candidate only forward passes, filters and
metrics are left. lm-eval's own caches are not used: they do not know that the weights changed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import ConfigError, StudyError, TaskError
from evomerge.evaluators.command import stock_commands
from evomerge.evaluators.groups import check_metric, expand
from evomerge.evaluators.options import Options, objectives_from, plain
from evomerge.evaluators.requests import (
    Plan,
    build_requests,
    documents_hash,
    plan_task,
)
from evomerge.evaluators.splits import check_sizes
from evomerge.evaluators.tasks import (
    check_objective,
    find_tasks,
    include_folders,
    lean,
    list_tasks,
    load_task,
)
from evomerge.racing import Bar
from evomerge.recipe import Recipe
from evomerge.trial import SPLITS, Objective, Scores, Split

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from evomerge.evaluators.asked import Asked
    from evomerge.evaluators.scoring import LiveModel


class LmEval:
    """Scores objectives that are metrics of lm-eval tasks.

    Beside a task's own metrics there are ``output_tokens``, the mean length of a generating task's
    answers (before filters), and ``collapse``, the share of documents whose answer looks like a
    broken model's (see :mod:`evomerge.evaluators.answers`).

    Documents of each task are dealt to search, select and test by a hash of their content (see
    :mod:`evomerge.evaluators.splits`; equal documents stay together). Within a split they keep
    the task's order; few-shot examples are drawn as ``lm_eval --samples`` draws them for exactly
    these documents. So :meth:`stock_command` reproduces every score; except that lm-eval, unless
    told ``logits_cache=False``, misreads a continuation whose input is also that of a longer one.

    Args:
        objectives: What to score; several may share a task, which is then scored once. A task may
            be a group that lm-eval has a score for (``mmlu``): see
            :mod:`evomerge.evaluators.groups`.
        include_path: Folder or folders with task YAML files of your own. Without it, or when they
            do not know a task, lm-eval's own tasks are indexed, which takes ten seconds.
        num_fewshot: Examples in the prompt; None for each task's own number. As in lm-eval, a
            task that sets 0 keeps 0.
        fewshot_seed: Seed of their draw (lm-eval's default is 1234).
        apply_chat_template: Whether prompts go through the tokenizer's chat template; a string is
            passed on as lm-eval does.
        fewshot_as_multiturn: Examples as turns of a conversation; None: as the chat template.
        system_instruction: Put before every prompt.
        gen_kwargs: Update of the generation settings of generating tasks.
        batch_size: Requests per forward pass, or ``"auto"``: by number of tokens.
        max_length: Longest input in tokens; None for what the model allows.
        splits: Documents per task on each split: a count, a share in (0, 1), or None for the rest.
        split_seed: Another seed, other splits.
        confirm_run_unsafe_code: Whether tasks that execute code written by the model may run.

    Raises:
        ConfigError: For settings that make no sense, and for a direction that a task contradicts.
        TaskError: For a task or a YAML file that cannot be used, and for too few documents.
        UnknownNameError: For an unknown task, metric or filter.
    """

    def __init__(
        self,
        objectives: Sequence[Objective | Mapping[str, Any]],
        *,
        include_path: str | Path | Sequence[str | Path] | None = None,
        num_fewshot: int | None = None,
        fewshot_seed: int = 1234,
        apply_chat_template: bool | str = False,
        fewshot_as_multiturn: bool | None = None,
        system_instruction: str | None = None,
        gen_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | str = "auto",
        max_length: int | None = None,
        splits: Mapping[str, int | float | None] | None = None,
        split_seed: int = 0,
        confirm_run_unsafe_code: bool = False,
    ) -> None:
        self.objectives = objectives_from(objectives)
        self.splits = check_sizes(splits)
        self.options = Options(
            num_fewshot=num_fewshot,
            fewshot_seed=fewshot_seed,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=fewshot_as_multiturn,
            system_instruction=system_instruction,
            gen_kwargs=plain(gen_kwargs) or None,
            batch_size=batch_size,
            max_length=max_length,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
            folder=str(Path.cwd()),
        )
        self._split_seed = split_seed
        self._live: LiveModel | None = None
        self._built: dict[Split, Asked] = {}
        self._tasks: dict[str, Any] = {}
        names = list(dict.fromkeys(o.task for o in self.objectives))
        sources, self._groups = find_tasks(names, include_folders(include_path))
        for objective in self.objectives:
            if objective.task in self._groups:
                check_metric(objective, self._groups[objective.task])
        self._plans: dict[str, Plan] = {}
        for name, source in sources.items():
            self._tasks[name] = task = load_task(source, self.options)
            for objective in expand(self.objectives, self._groups):
                if objective.task == name:
                    check_objective(objective, task)
            self._plans[name] = plan_task(source, task, self.options, self.splits, split_seed)

    def __getstate__(self) -> dict[str, Any]:
        """Plain data: a worker loads the tasks again from their own files, without an index."""
        return self.__dict__ | {"_live": None, "_built": {}, "_tasks": {}}

    list_tasks = staticmethod(list_tasks)

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Loads the tasks and encodes the requests of the search split.

        The other splits follow when they are first asked for. The model is not copied, moved or
        changed, except that it is put into evaluation mode.

        Raises:
            ConfigError: For a chat template that the tokenizer does not have.
            TaskError: When the documents are not those that the driver saw.
        """
        from evomerge.evaluators.scoring import LiveModel

        if self.options.apply_chat_template and not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "apply_chat_template is set, but the tokenizer has no chat template. Take the "
                "tokenizer of an instruction-tuned expert, or set it to false."
            )
        model.train(mode=False)
        with lean():
            self._live = LiveModel(
                model, tokenizer, self.options.batch_size, self.options.max_length
            )
        self._built = {}
        if self._asked("search"):
            self._build("search")

    def evaluate(
        self, model: PreTrainedModel, recipe: Recipe, split: Split, bar: Bar | None = None
    ) -> Scores:
        """Scores the weights that are in ``model`` now.

        Args:
            model: The model given to :meth:`prepare`, with any weights.
            recipe: Not looked at.
            split: Which documents. Objectives that do not guide the search are scored on
                ``test`` only: what is merely reported must not sway the choice of finalists.
            bar: Asks the documents in blocks and stops once this cannot be reached.

        Returns:
            Signed values, their standard errors (see :mod:`evomerge.evaluators.metrics`) and, in
            the order of :meth:`samples`, signed per-document values: 0 or 1 for an accuracy, bits
            per byte of the document for ``bits_per_byte``, the log-likelihood (nats; per word or
            byte where the metric is) for perplexities; None for corpus metrics.

        Raises:
            FloatingPointError: When the model's outputs or a score are not finite.
            TaskError: When a split without documents is asked for.
            StudyError: Before :meth:`prepare`.
        """
        import torch

        del recipe
        if self._live is None:
            raise StudyError("LmEval.evaluate was called before prepare.")
        asked = self._built.get(split) or self._build(split)
        start = time.perf_counter()
        with lean(), torch.inference_mode():
            scores = asked.scores(model, bar)
        return dataclasses.replace(scores, seconds={"score": time.perf_counter() - start})

    @property
    def corpus_metrics(self) -> tuple[str, ...]:
        """Names of the guiding objectives that have no score per document.

        Groups of texts weighed by their bytes count among them.
        Known in the driver, which loaded the tasks.
        """
        from lm_eval.api.metrics import bits_per_byte

        from evomerge.evaluators.asked import aggregation
        from evomerge.evaluators.metrics import is_documented

        names = []
        for o in self.objectives:
            found = [aggregation(self._tasks, part) for part in expand([o], self._groups)]
            weighed = len(found) > 1 and bits_per_byte in found
            if o.guides and (weighed or not all(map(is_documented, found))):
                names.append(o.name)
        return tuple(names)

    def documents(self, split: Split) -> Mapping[str, int]:
        """Number of documents per objective that is scored on a split."""
        sizes = self._sizes(split)
        return {
            o.name: sum(sizes[part.task] for part in expand([o], self._groups))
            for o in self._asked(split)
        }

    def _sizes(self, split: Split) -> dict[str, int]:
        """Task to its number of documents."""
        return {task: len(ids) for task, ids in self.samples(split).items()}

    def samples(self, split: Split) -> dict[str, list[int]]:
        """Task to the ascending indices of its documents: the value of ``lm_eval --samples``."""
        tasks = dict.fromkeys(o.task for o in expand(self._asked(split), self._groups))
        return {task: list(self._plans[task].ids[split]) for task in tasks}

    def fingerprint(self) -> Mapping[str, Any]:
        """Plain data that changes whenever the scores could; no paths, no batch size."""
        groups = {g.name: [g.tasks, g.by_size] for g in self._groups.values()}
        scored = ("name", "task", "metric", "filter", "direction", "guides")
        return {
            "evaluator": "lm_eval",
            "lm_eval": importlib.metadata.version("lm_eval"),
            "objectives": [{k: getattr(o, k) for k in scored} for o in self.objectives],
            "tasks": {
                name: {"config": plan.config, **plan.content} for name, plan in self._plans.items()
            },
            **({"groups": plain(groups)} if groups else {}),
            "options": {
                name: value
                for name, value in dataclasses.asdict(self.options).items()
                if name not in {"batch_size", "folder"}
            },
        }

    def scores_depend_on(self, split: Split) -> Mapping[str, Any]:
        """The fingerprint without other splits' documents and objectives not scored on this."""
        asked = self._asked(split)
        whole = self.fingerprint()
        tasks = {name: whole["tasks"][name] for name in sorted(self.samples(split))}
        code = {name: self._plans[name].source.code_hash() for name in tasks}
        return {
            **whole,
            "objectives": [[o.name, o.task, o.metric, o.filter, o.direction] for o in asked],
            "tasks": {n: [data["config"], data[split], code[n]] for n, data in tasks.items()},
        }

    def write_samples(self, folder: str | Path) -> dict[Split, Path]:
        """Writes ``samples-<split>.json`` for every split with documents.

        Returns:
            Split to file; each is a value for ``lm_eval --samples`` and :meth:`stock_command`.
        """
        files: dict[Split, Path] = {}
        for split in SPLITS:
            samples = self.samples(split)
            if any(samples.values()):
                files[split] = Path(folder) / f"samples-{split}.json"
                files[split].write_text(json.dumps(samples) + "\n", encoding="utf-8")
        return files

    def stock_command(
        self, model_dir: str | Path, split: Split, samples: str | Path | None = None
    ) -> list[str]:
        """The stock commands that score a checkpoint on the documents of a split.

        Args:
            model_dir: The checkpoint.
            split: Which documents.
            samples: File from :meth:`write_samples`; without it the indices are spelled out.

        Returns:
            Shell lines: one, or one per folder where ``include_path`` has several.
        """
        indices = self.samples(split)
        sources = [self._plans[name].source for name in indices]
        alone = {o.task for o in self._asked(split)} - set(self._groups)
        groups = [g for g in self._groups.values() if not alone & set(g.tasks)]
        return stock_commands(model_dir, sources, samples or indices, self.options, groups)

    def _asked(self, split: Split) -> list[Objective]:
        """The objectives that are scored on a split."""
        return [o for o in self.objectives if o.guides or split == "test"]

    def _build(self, split: Split) -> Asked:
        """Builds and encodes the requests of a split."""
        from evomerge.evaluators.asked import Asked

        assert self._live is not None  # noqa: S101
        chat = self._live.lm.apply_chat_template if self.options.apply_chat_template else None
        instances: dict[str, list[Any]] = {}
        for name, ids in self.samples(split).items():
            if not ids:
                raise TaskError(f"task {name!r}: the {split} split has no documents.")
            plan = self._plans[name]
            if name not in self._tasks:
                self._tasks[name] = load_task(plan.source, self.options)
            instances[name] = build_requests(self._tasks[name], ids, self.options, chat)
            if documents_hash(instances[name]) != plan.content[split]:
                raise TaskError(
                    f"task {name!r}: the documents of the {split} split are not those that the "
                    "driver saw. Its data files differ between machines, or changed meanwhile."
                )
        self._built[split] = Asked(
            self._live,
            tasks=self._tasks,
            instances=instances,
            objectives=self._asked(split),
            groups=self._groups,
            seed=self._split_seed,
        )
        return self._built[split]
