"""A batch that does not fit is halved; anything else that goes wrong is not retried."""

from __future__ import annotations

import pytest
import torch

from evomerge.evaluators.memory import Portions, is_out_of_memory


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_portions_halve_and_remember():
    tried = []

    def work(rows):
        tried.append(len(rows))
        if len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sum(rows)

    portions = Portions()
    assert sum(portions.run(range(10), work)) == sum(range(10))
    assert tried == [10, 5, 2, 2, 2, 2, 2]
    assert portions.limit == 2
    assert portions.run([7, 7, 7], work) == [14, 7]
    assert Portions().run([], work) == []


def test_other_errors_are_not_retried():
    tried = []

    def work(rows):
        tried.append(len(rows))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Portions().run(range(8), work)
    assert tried == [8]


def test_a_row_that_does_not_fit_alone_is_an_error():
    def work(rows):
        raise MemoryError(len(rows))

    with pytest.raises(MemoryError, match="1"):
        Portions().run(range(8), work)
