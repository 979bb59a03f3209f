import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from evomerge.errors import ConfigError
from evomerge.zoo import DOMAINS, MODELS, SIZES, TASKS, arithmetic, build_zoo, corpus
from evomerge.zoo.build import default_folder

WEIGHTS = "model.safetensors"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_zoo(tmp_path_factory.mktemp("zoo") / "tiny", "tiny", progress=False)


def documents(folder, task):
    return json.loads((folder / "tasks" / f"{task}.json").read_text(encoding="utf-8"))


def test_structure(tiny):
    assert {p.name for p in tiny.iterdir()} == {*MODELS, "tasks", "zoo.json"}
    for task in TASKS:
        assert (tiny / "tasks" / f"{task}.yaml").exists()
        assert len(documents(tiny, task)) == SIZES["tiny"].n_documents
    manifest = json.loads((tiny / "zoo.json").read_text(encoding="utf-8"))
    assert set(manifest["bits_per_byte"]) == set(manifest["training_loss"]) == set(MODELS)
    assert not list(tiny.parent.glob(".*.part"))


def test_second_build_is_instant(tiny):
    before = time.perf_counter()
    assert build_zoo(tiny, "tiny") == tiny
    assert time.perf_counter() - before < 1


def test_two_builds_give_the_same_bytes(tiny, tmp_path):
    again = build_zoo(tmp_path / "again", "tiny", progress=False)
    paths = [p.relative_to(tiny) for p in sorted(tiny.rglob("*")) if p.is_file()]
    paths = [p for p in paths if p.name != "zoo.json" and "__pycache__" not in p.parts]
    assert any(p.name == WEIGHTS for p in paths)
    for path in paths:
        assert (tiny / path).read_bytes() == (again / path).read_bytes(), path


def test_experts_differ_from_the_base(tiny):
    weights = {(tiny / name / WEIGHTS).read_bytes() for name in MODELS}
    assert len(weights) == len(MODELS)


def test_models_load_and_share_a_tokenizer(tiny):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in MODELS:
        model = AutoModelForCausalLM.from_pretrained(tiny / name)
        assert model.dtype == torch.float32
        assert model.config.max_position_embeddings >= 256
        assert (tiny / name / "generation_config.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(tiny / "base")
    assert None not in (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    text = "def f(x):\n    return x + 41  # a naïve comment\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    longest = max(len(tokenizer.encode(d["text"])) for t in TASKS[:3] for d in documents(tiny, t))
    assert longest < 600  # bytes at worst: `tiny` has few merges


def test_no_task_document_was_trained_on(tiny):
    limit = SIZES["tiny"].corpus_bytes
    found = corpus.read_corpus(limit)
    for domain in ("code", "prose"):
        train = "\n".join(found.train[domain])
        texts = [d["text"] for d in documents(tiny, f"zoo_{domain}_ll")]
        texts += [
            d["context"] + d["choices"][d["answer"]]
            for d in documents(tiny, f"zoo_{domain}_choice")
        ]
        assert len(set(texts)) == len(texts)
        assert not [text for text in texts if text in train]
    rng = np.random.default_rng(0)
    seen = arithmetic.runs(arithmetic.documents(50, rng))
    shown = arithmetic.documents(50, rng, seen)
    assert not arithmetic.runs(shown) & seen
    prompts = [d["prompt"] + d["answer"] for d in documents(tiny, "zoo_math_exact")]
    assert len(set(prompts)) == len(prompts)


def test_seen_arithmetic_is_not_asked():
    class Replay:
        """The same draws again, then fresh ones."""

        def __init__(self):
            self.first, self.then = np.random.default_rng(1), np.random.default_rng(2)
            self.n = 0

        def integers(self, *args, **kwargs):
            self.n += 1
            return (self.first if self.n == 1 else self.then).integers(*args, **kwargs)

    trained = arithmetic.documents(1, np.random.default_rng(1))
    asked = arithmetic.documents(1, Replay(), arithmetic.runs(trained))
    assert asked != trained
    assert arithmetic.documents(1, Replay()) == trained


def test_arithmetic_is_right():
    for problem in ("4+8", "9-8", "7*8", "0*0"):
        assert arithmetic.solve(problem) == str(eval(problem))
    with pytest.raises(ValueError, match="expected a problem"):
        arithmetic.solve("7")


def test_seen_text_is_dropped():
    seen = "the quick brown fox jumps over the lazy dog and runs away from here"
    new = "a method that returns every item of the list whose key is not known"
    assert corpus.drop_seen([seen, new, new], [f"x {seen} y"]) == [new]


def test_choices_are_four_and_hold_the_answer_once(tiny):
    for task in ("zoo_code_choice", "zoo_prose_choice"):
        rows = documents(tiny, task)
        assert all(len(set(row["choices"])) == 4 for row in rows)
        assert {row["answer"] for row in rows} == {0, 1, 2, 3}


def test_lm_eval_loads_the_tasks_from_anywhere(tiny, tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager

    moved = tmp_path / "moved"
    moved.symlink_to(tiny / "tasks")
    monkeypatch.chdir(tmp_path)
    manager = TaskManager(include_path=str(moved), include_defaults=False)
    assert set(TASKS) <= set(manager.all_tasks)
    loaded = manager.load(list(TASKS))["tasks"]
    for task in TASKS:
        assert len(list(loaded[task].test_docs())) == SIZES["tiny"].n_documents


def test_yaml_holds_no_absolute_path(tiny):
    for path in (tiny / "tasks").glob("*.yaml"):
        assert str(tiny) not in path.read_text()
        assert "custom_dataset: !function" in path.read_text()
        assert yaml.safe_load(path.read_text().replace("!function ", ""))["test_split"] == "test"


def test_a_killed_build_leaves_nothing_that_looks_finished(tmp_path):
    folder = tmp_path / "zoo"
    code = (
        "import time; from evomerge.zoo import build\n"
        "build._train_models = lambda *_: (print('here', flush=True), time.sleep(600))\n"
        f"build.build_zoo({str(folder)!r}, 'tiny', progress=False)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    part = folder.with_name(".zoo.part")
    assert (part / "tasks").exists()
    assert not folder.exists()
    assert build_zoo(folder, "tiny", progress=False) == folder
    assert not part.exists()
    assert (folder / "zoo.json").exists()


def test_two_processes_build_once(tmp_path):
    folder = tmp_path / "zoo"
    code = f"from evomerge.zoo import build_zoo; build_zoo({str(folder)!r}, 'tiny')"
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    told = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert sorted(bool(text) for text in told) == [False, True]  # one built, one waited


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.zoo.build.read_corpus", lambda limit: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_zoo(tmp_path / "zoo", "tiny", progress=False)
    assert {p.name for p in tmp_path.iterdir()} <= {".zoo.lock"}


def test_build_gives_torch_back_as_it_was(tmp_path, monkeypatch):
    import torch

    from evomerge.zoo.build import _fixed_torch

    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    with _fixed_torch():
        torch.rand(3)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_strange_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not the 'tiny' zoo"):
        build_zoo(tmp_path, "tiny")
    assert (tmp_path / "mine.txt").exists()


def test_unknown_size():
    with pytest.raises(ConfigError, match=r"unknown zoo size 'huge'.*tiny, small, medium"):
        build_zoo(size="huge")


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("EVOMERGE_CACHE", raising=False)
    assert default_folder().parent == tmp_path / "xdg" / "evomerge" / "zoo"
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "own"))
    assert default_folder("tiny").parent == tmp_path / "own" / "zoo"
    assert default_folder("tiny") != default_folder("small")


def test_import_is_light():
    code = (
        "import sys, evomerge.zoo; "
        "sys.exit(bool({'torch', 'transformers', 'tokenizers', 'lm_eval'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_small_experts_win_at_home():
    """On its own documents each expert beats the base and the others by 3 standard errors."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evomerge.zoo.score import bits_per_byte

    folder = build_zoo(size="small")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    models = {m: AutoModelForCausalLM.from_pretrained(folder / m) for m in MODELS}
    for domain in DOMAINS:
        texts = [d["text"] for d in documents(folder, f"zoo_{domain}_ll")][:350]
        bits = {name: bits_per_byte(model, tokenizer, texts) for name, model in models.items()}
        for other in MODELS:
            if other != domain:
                gain = bits[other] - bits[domain]
                error = gain.std(ddof=1) / np.sqrt(len(gain))
                assert gain.mean() > 3 * error, (domain, other, gain.mean(), error)
