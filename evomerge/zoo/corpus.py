"""Text that every Python installation carries: code and English prose of the standard library.

Code is the source of the modules without docstrings and comment lines. Prose is the English
paragraphs of their docstrings, and the topics of `pydoc_data`. Nothing is imported: every file
is read through `ast`.

What is held out is decided before anything else, by source: a module (its code and its
docstrings together) or a topic belongs to training or to the tasks, by a hash of its name. Texts
that repeat across modules are then removed from the held-out side (`drop_seen`).
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import EvomergeError

HELD_OUT_PERCENT = 33
DOCUMENT_BYTES = 280
SHINGLE_WORDS = 6
MAX_SEEN_SHARE = 0.1

_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "lib-dynload", "__pycache__", "__phello__", "test", "tests"}
    | {"idlelib", "lib2to3", "encodings", "turtledemo", "ensurepip", "pydoc_data"}
)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_MIN_BYTES = 200


@dataclass(frozen=True)
class Corpus:
    """Documents of the text domains ("code" and "prose").

    Attributes:
        train: Domain to its training documents.
        held_out: Domain to documents whose source was kept out of training.
    """

    train: dict[str, list[str]]
    held_out: dict[str, list[str]]


def read_corpus(limit: int) -> Corpus:
    """Read the standard library of the running Python.

    Args:
        limit: At most this many bytes of training text per domain; as much again may be held
            out.

    Returns:
        Documents of about `DOCUMENT_BYTES` bytes, in a fixed order.

    Raises:
        EvomergeError: The standard library has too little source text (a stripped or zipped
            Python).
    """
    train: dict[str, list[str]] = {"code": [], "prose": []}
    held_out: dict[str, list[str]] = {"code": [], "prose": []}
    room = {(name, held): limit for name in train for held in (False, True)}
    for source, domain, documents in _sources():
        if max(room.values()) <= 0:
            break
        held = is_held_out(source)
        side = held_out if held else train
        for document in documents:
            if room[domain, held] > 0:
                side[domain].append(document)
                room[domain, held] -= len(document.encode())
    train = {domain: list(dict.fromkeys(texts)) for domain, texts in train.items()}
    held_out = {domain: drop_seen(texts, train[domain]) for domain, texts in held_out.items()}
    for domain, texts in train.items():
        if not texts or not held_out[domain]:
            raise EvomergeError(
                f"no {domain} in {sysconfig.get_path('stdlib')}: the zoo is built from the "
                "source files of the standard library, which this Python does not carry"
            )
    return Corpus(train, held_out)


def is_held_out(source: str) -> bool:
    """Say whether a module or topic is kept out of training (a hash of its name decides)."""
    return int(hashlib.sha256(source.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def drop_seen(documents: Iterable[str], train: Iterable[str]) -> list[str]:
    """Remove documents that training has seen, wholly or in part.

    Args:
        documents: Candidates, held out by source.
        train: The training documents.

    Returns:
        Distinct documents of which at most `MAX_SEEN_SHARE` of the runs of `SHINGLE_WORDS` words
        occur in training or in an earlier document.
    """
    shingles = {document: _shingles(document) for document in documents}
    wanted = set().union(*shingles.values()) if shingles else set()
    seen: set[str] = set()
    for document in train:
        seen |= wanted & _shingles(document)
    kept = []
    for document, own in shingles.items():
        if own and len(own & seen) <= MAX_SEEN_SHARE * len(own):
            kept.append(document)
            seen |= own
    return kept


def _shingles(text: str) -> set[str]:
    words = re.findall(r"\w+", text)
    return {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}


def _sources() -> Iterator[tuple[str, str, list[str]]]:
    """Yield (name of the source, domain, documents), in an order keyed by the name's hash."""
    root = Path(sysconfig.get_path("stdlib"))
    topics = [("topic " + name, text) for name, text in _read_topics(root).items()]
    modules: list[tuple[str, Path]] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f not in _SKIPPED and not f.startswith("config-")]
        paths = (Path(folder, file) for file in files if file.endswith(".py"))
        modules.extend((path.relative_to(root).as_posix(), path) for path in paths)
    # A hashed order takes every kind of module when `limit` cuts the list short.
    ordered: list[tuple[str, str | Path]] = [*topics, *modules]
    for name, content in sorted(
        ordered, key=lambda item: hashlib.sha256(item[0].encode()).digest()
    ):
        if isinstance(content, str):
            yield name, "prose", prose_documents([content])
            continue
        try:
            with tokenize.open(content) as file:
                text = file.read()
            tree = ast.parse(text)
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue  # the library carries a few files that are broken on purpose
        yield name, "code", code_documents(text, tree)
        docstrings = [
            ast.get_docstring(node) or ""
            for node in ast.walk(tree)
            if isinstance(node, _DOCUMENTED)
        ]
        yield name, "prose", prose_documents(docstrings)


def _read_topics(root: Path) -> dict[str, str]:
    path = root / "pydoc_data" / "topics.py"
    if not path.exists():
        return {}  # some distributions leave it out; docstrings remain
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        if isinstance(value, ast.Dict):
            return dict(sorted(ast.literal_eval(value).items()))
    return {}


def code_documents(text: str, tree: ast.Module) -> list[str]:
    """Cut a module into documents of whole lines, without docstrings and comment lines.

    Args:
        text: The source of the module.
        tree: Its syntax tree.

    Returns:
        Documents of `_MIN_BYTES` to about `DOCUMENT_BYTES` bytes, each ending with a newline.
    """
    dropped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            dropped.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = [
        line.rstrip()
        for number, line in enumerate(text.splitlines(), 1)
        if number not in dropped and line.strip() and not line.lstrip().startswith("#")
    ]
    documents: list[str] = []
    block: list[str] = []
    size = 0
    for line in lines:
        length = len(line.encode()) + 1
        if size + length > DOCUMENT_BYTES:
            documents.append(textwrap.dedent("\n".join(block)) + "\n")
            block, size = [], 0
        block.append(line)
        size += length
    return [d for d in documents if _MIN_BYTES <= len(d.encode()) <= DOCUMENT_BYTES]


def prose_documents(texts: Iterable[str]) -> list[str]:
    """Take the English paragraphs of texts, join them, and cut the result at spaces.

    Args:
        texts: Docstrings or topics.

    Returns:
        Documents of `_MIN_BYTES` to `DOCUMENT_BYTES` bytes, on one line each.
    """
    paragraphs = [
        " ".join(paragraph.split())
        for text in texts
        for paragraph in re.split(r"\n\s*\n", text)
        if _is_english(paragraph)
    ]
    pieces = textwrap.wrap(
        " ".join(paragraphs), DOCUMENT_BYTES, break_long_words=False, break_on_hyphens=False
    )
    return [p for p in pieces if _MIN_BYTES <= len(p.encode()) <= DOCUMENT_BYTES]


def _is_english(paragraph: str) -> bool:
    words = paragraph.split()
    if len(words) < 6 or ">>>" in paragraph or "::=" in paragraph:
        return False
    plain = sum(word.rstrip(".,;:").isalpha() for word in words)
    return plain >= 0.65 * len(words)
