"""Fixtures for every test: devices, a private cache, one torch thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def devices() -> list[str]:
    import torch

    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", devices(), indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest):
    """Everything that touches tensors runs on the CPU and, where there is one, on the GPU."""
    import torch

    return torch.device(request.param)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The audit notes of throw-away checkpoints stay out of the user's cache."""
    if "EVOMERGE_CACHE" in os.environ:
        yield
        return
    os.environ["EVOMERGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["EVOMERGE_CACHE"]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and two experts, tiny Llamas with random weights."""
    from tests.models import build_family

    return build_family(tmp_path_factory.mktemp("family"), "llama", n_experts=2)
