"""lm-eval's own task configurations, as they ship, over documents that are made up here.

An entry of :data:`ROWS` is a YAML file of ``lm_eval/tasks`` and a function that makes one row of
its data set. Splits, filters, metrics and their directions are read from the configuration, so
adding one is adding an entry. Nothing but the data set is replaced: ``process_docs``, metrics,
``doc_to_*``, filters, few-shot samplers and ``include`` chains are lm-eval's. For what none of
them does, :data:`CHANGED` has settings on top of one (``file@name``).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.api.registry import is_higher_better
from lm_eval.tasks._yaml_loader import load_yaml

from evomerge.trial import Objective

TASKS = Path(lm_eval.__file__).parent / "tasks"
TEXT = (
    "the a of river stone bird green seven never water light tall house under moon quickly "
    "paper sings old winter glass road blue eats king small answer is not and"
)
WORDS = TEXT.split()
N_EVALUATED, N_TRAINING = 12, 12

Row = Callable[[random.Random], dict[str, Any]]


def text(rng: random.Random, low: int, high: int) -> str:
    """A sentence without its full stop."""
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def texts(rng: random.Random, n: int, low: int = 1, high: int = 6) -> list[str]:
    """Choices: different, and half of them begin like the first."""
    first = text(rng, low, high)
    found = [first]
    while len(found) < n:
        found.append(first + " " + text(rng, 1, 3) if rng.random() < 0.5 else text(rng, low, high))
        found = list(dict.fromkeys(found))
    return found


def arc(rng: random.Random, low: int = 1) -> dict[str, Any]:
    labels = ["A", "B", "C", "D"]
    choices = {"text": texts(rng, 4, low), "label": labels}
    return {"question": text(rng, 4, 12), "choices": choices, "answerKey": rng.choice(labels)}


def hellaswag(rng: random.Random) -> dict[str, Any]:
    return {
        "activity_label": text(rng, 1, 2),
        "ctx_a": text(rng, 5, 12) + ". [header] " + text(rng, 2, 3),
        "ctx_b": text(rng, 1, 3),
        "endings": [e + " [title] x" for e in texts(rng, 4, 4, 12)],
        "label": str(rng.randrange(4)),
    }


def winogrande(rng: random.Random) -> dict[str, Any]:
    one, two = texts(rng, 2, 1, 2)
    sentence = f"{text(rng, 3, 6)} _ {text(rng, 2, 5)}."
    return {"sentence": sentence, "option1": one, "option2": two, "answer": rng.choice("12")}


def copa(rng: random.Random) -> dict[str, Any]:
    one, two = (t.capitalize() + "." for t in texts(rng, 2))
    kind = rng.choice(["cause", "effect"])
    row = {"premise": text(rng, 3, 8) + ".", "choice1": one, "choice2": two, "question": kind}
    return row | {"label": rng.randrange(2)}


def truthfulqa(rng: random.Random) -> dict[str, Any]:
    def targets(n: int, n_true: int) -> dict[str, Any]:
        return {"choices": texts(rng, n), "labels": [1] * n_true + [0] * (n - n_true)}

    n = rng.randint(3, 7)
    row = {"question": text(rng, 3, 9) + "?", "mc1_targets": targets(4, 1)}
    return row | {"mc2_targets": targets(n, rng.randint(1, n - 1))}


def race(rng: random.Random) -> dict[str, Any]:
    problems = [
        {
            "question": text(rng, 3, 8) + rng.choice(["?", "  _  ."]),
            "answer": rng.choice("ABCD"),
            "options": texts(rng, 4),
        }
        for _ in range(rng.randint(1, 3))
    ]
    return {"article": text(rng, 20, 60), "problems": repr(problems)}


def wic(rng: random.Random) -> dict[str, Any]:
    one, word, two = text(rng, 2, 4), rng.choice(WORDS), text(rng, 2, 4)
    start = len(one) + 1
    return {
        "sentence1": f"{one} {word} {two}",
        "sentence2": f"{text(rng, 2, 4)} {word}",
        "start1": start,
        "end1": start + len(word),
        "label": rng.randrange(2),
    }


def mathqa(rng: random.Random) -> dict[str, Any]:
    values = rng.sample(range(10, 999), 5)
    options = " , ".join(f"{c} ) {v}" for c, v in zip("abcde", values, strict=True))
    return {"Problem": text(rng, 5, 12), "options": options, "correct": rng.choice("abcde")}


def drop(rng: random.Random) -> dict[str, Any]:
    date = {"day": "", "month": "", "year": ""}
    nothing: dict[str, Any] = {"number": [], "date": [], "spans": []}
    return {
        "query_id": text(rng, 2, 2),
        "passage": text(rng, 10, 30),
        "question": text(rng, 3, 6),
        "answer": {"number": "", "date": date, "spans": texts(rng, rng.randint(1, 2), 1, 2)},
        "validated_answers": nothing
        | {"number": ["3"], "date": [date], "spans": [texts(rng, 1, 1, 2)]},
    }


def qasper(rng: random.Random) -> dict[str, Any]:
    def answer() -> dict[str, Any]:
        free = {"unanswerable": False, "yes_no": None, "free_form_answer": text(rng, 1, 5)}
        return {"answer": [free | {"extractive_spans": []}]}

    questions = [text(rng, 3, 6) for _ in range(rng.randint(1, 2))]
    return {
        "title": text(rng, 2, 4),
        "abstract": text(rng, 8, 20),
        "qas": {"question": questions, "answers": [answer() for _ in questions]},
    }


def gpqa(rng: random.Random) -> dict[str, Any]:
    names = ["Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3", "Correct Answer"]
    return {"Question": text(rng, 4, 9), **dict(zip(names, texts(rng, 4), strict=True))}


def pair(*names: str, n_labels: int = 2, high: int = 10) -> Row:
    """Sentences and a label."""
    return lambda rng: {
        **{name: text(rng, 2, high) for name in names},
        "label": rng.randrange(n_labels),
    }


def arithmetic(rng: random.Random) -> dict[str, Any]:
    answer = f"{text(rng, 3, 9)}. #### {rng.randrange(99)}"
    return {"question": text(rng, 4, 14), "answer": answer}


def mmlu(rng: random.Random) -> dict[str, Any]:
    return {
        "question": " " + text(rng, 3, 14),
        "choices": texts(rng, 4),
        "answer": rng.randrange(4),
    }


def wikitext(rng: random.Random) -> dict[str, Any]:
    paragraphs = [
        f" = {text(rng, 1, 3)} = \n {text(rng, 4, 40)} @-@ {text(rng, 1, 4)} , 1 @,@ 000"
    ]
    return {"page": "\n".join(paragraphs * rng.randint(1, 3))}


ROWS: dict[str, Row] = {
    "arc/arc_easy": arc,
    "arc/arc_challenge": arc,
    "arc/arc_easy@mutual": arc,
    "arc/arc_easy@joined": lambda rng: arc(rng, low=2),
    "hellaswag/hellaswag": hellaswag,
    "piqa/piqa": lambda rng: {
        "goal": text(rng, 3, 9),
        **dict(zip(("sol1", "sol2"), texts(rng, 2), strict=True)),
        "label": rng.randrange(2),
    },
    "winogrande/default": winogrande,
    "xwinograd/xwinograd_en": winogrande,
    "super_glue/boolq/default": pair("passage", "question", high=40),
    "super_glue/copa/default": copa,
    "super_glue/cb/default": pair("premise", "hypothesis", n_labels=3),
    "super_glue/wic/default": wic,
    "glue/mrpc/default": pair("sentence1", "sentence2"),
    "glue/cola/default": pair("sentence"),
    "lambada/lambada_openai": lambda rng: {"text": text(rng, 5, 40)},
    "wikitext/wikitext": wikitext,
    "blimp/adjunct_island": lambda rng: dict(
        zip(("sentence_good", "sentence_bad"), texts(rng, 2, 3, 8), strict=True)
    ),
    "truthfulqa/truthfulqa_mc1": truthfulqa,
    "truthfulqa/truthfulqa_mc2": truthfulqa,
    "race/race": race,
    "openbookqa/openbookqa": lambda rng: {
        "question_stem": (row := arc(rng)).pop("question"),
        **row,
    },
    "sciq/sciq": lambda rng: {
        "support": rng.choice(["", " " + text(rng, 10, 30)]),
        "question": text(rng, 3, 9),
        **dict(
            zip(
                ("distractor1", "distractor2", "distractor3", "correct_answer"),
                texts(rng, 4),
                strict=True,
            )
        ),
    },
    "commonsense_qa/default": lambda rng: {
        "question": text(rng, 3, 9),
        "choices": {"text": texts(rng, 5, 1, 2)},
        "answerKey": rng.choice("ABCDE"),
    },
    "mathqa/mathqa": mathqa,
    "gpqa/zeroshot/gpqa_main_zeroshot": gpqa,
    **dict.fromkeys(
        (
            f"mmlu/default/mmlu_{subject}"
            for subject in ("anatomy", "virology", "sociology", "philosophy")
        ),
        mmlu,
    ),
    "gsm8k/gsm8k": arithmetic,
    "gsm8k/gsm8k-cot-self-consistency@three": arithmetic,
    "triviaqa/default": lambda rng: {
        "question": text(rng, 3, 9),
        "answer": {"aliases": texts(rng, rng.randint(1, 4), 1, 2), "value": "x"},
    },
    "nq_open/nq_open": lambda rng: {"question": text(rng, 3, 9), "answer": texts(rng, 2, 1, 2)},
    "drop/default": drop,
    "qasper/freeform": qasper,
    "bbh/cot_fewshot/boolean_expressions": lambda rng: {
        "input": text(rng, 3, 6),
        "target": rng.choice(["True", "False"]),
    },
}

CHANGED: dict[str, dict[str, Any]] = {
    # the unconditional log-likelihood of each choice, an empty context, is asked too
    "arc/arc_easy@mutual": {"metric_list": [{"metric": "acc"}, {"metric": "acc_mutual_info"}]},
    # no space between: context and continuation merge into tokens that neither has
    "arc/arc_easy@joined": {"target_delimiter": ""},
    "gsm8k/gsm8k-cot-self-consistency@three": {
        "repeats": 3,
        "generation_kwargs": {"until": ["Q:", "\n\n"], "do_sample": False},
        "filter_list": [
            {"name": "first", "filter": [{"function": "take_first"}]},
            {
                "name": "majority",
                "filter": [
                    {"function": "take_first_k", "k": 2},
                    {"function": "majority_vote"},
                    {"function": "take_first"},
                ],
            },
        ],
    },
}

GROUPS = (
    "mmlu/default/_mmlu",
    *(f"mmlu/default/_mmlu_{part}" for part in ("stem", "other", "social_sciences", "humanities")),
)


def configuration(name: str) -> dict[str, Any]:
    """A configuration as lm-eval reads it, with functions by name."""
    file, _, change = name.partition("@")
    config = load_yaml(TASKS / f"{file}.yaml", resolve_func=False)
    if change:
        config |= {"task": f"{config['task']}_{change}"} | CHANGED[name]
    return dict(config)


def task_name(name: str) -> str:
    """What a configuration calls itself."""
    config = configuration(name)
    return str(config.get("group") or config["task"])


def write(folder: Path, names: Iterable[str] = (*ROWS, *GROUPS)) -> None:
    """Writes one YAML file per configuration, and their data.

    Args:
        folder: An empty folder.
        names: Keys of :data:`ROWS`, and :data:`GROUPS`.
    """
    (folder / "data").mkdir()
    for name in names:
        task = task_name(name)
        over: dict[str, Any] = {"include": str(TASKS / f"{name.partition('@')[0]}.yaml")}
        over |= CHANGED.get(name, {})
        if name in ROWS:
            over |= {"task": task, "dataset_path": "json", "dataset_name": None}
            over["dataset_kwargs"] = {"data_files": _data(folder, name)}
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(over, sort_keys=False))


def _data(folder: Path, name: str) -> dict[str, str]:
    """Writes the splits that a configuration names; returns their files."""
    config = configuration(name)
    keys = ("training_split", "validation_split", "test_split", "fewshot_split")
    evaluated = config.get("test_split") or config.get("validation_split")
    files = {}
    for split in filter(None, dict.fromkeys(config.get(k) for k in keys)):
        rng = random.Random(f"{name} {split}")
        n = N_EVALUATED + 2 * rng.randrange(3) if split == evaluated else N_TRAINING
        file = folder / "data" / f"{name.replace('/', '-')}-{split}.jsonl"
        file.write_text("".join(json.dumps(ROWS[name](rng)) + "\n" for _ in range(n)))
        files[split] = str(file)
    return files


def objectives(name: str) -> list[Objective]:
    """One objective per metric and filter of a configuration."""
    config, task = configuration(name), task_name(name)
    metrics = config.get("metric_list") or config["aggregate_metric_list"]
    filters = [f["name"] for f in config.get("filter_list") or [{"name": "none"}]]
    made = []
    for given in metrics:
        metric = str(given["metric"]).rpartition(".")[2]  # a metric may be a function
        higher = given.get("higher_is_better")
        higher = is_higher_better(metric) if higher is None else higher
        direction = "maximize" if higher else "minimize"
        made += [Objective(f"{task} {metric} {f}", task, metric, f, direction) for f in filters]
    return made
