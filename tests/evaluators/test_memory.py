"""A batch that does not fit is halved; anything else that goes wrong is not retried."""

from __future__ import annotations

import pytest
import torch

from evomerge.evaluators.memory import half, in_pieces, is_out_of_memory


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def halves(rows):
    middle = len(rows) // 2
    return (rows[:middle], rows[middle:]) if middle else ()


def test_pieces_are_halved_and_stay_so():
    tried = []

    def work(rows):
        tried.append(len(rows))
        if len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sum(rows)

    pieces = [range(10), range(10, 13)]
    assert sum(in_pieces(pieces, work, halves)) == sum(range(13))
    assert tried == [10, 5, 2, 3, 5, 2, 3, 3]
    assert [row for piece in pieces for row in piece] == list(range(13))
    tried.clear()
    assert in_pieces(pieces, work, halves) == [1, 9, 11, 24, 33]
    assert tried == [2, 3, 2, 3, 3]
    assert in_pieces([], work, halves) == []


def test_what_divides_its_work_itself_is_given_a_smaller_number():
    def work(n):
        if n > 3:
            raise MemoryError
        return n

    sizes = [20]
    assert in_pieces(sizes, work, half) == [2]
    assert sizes == [2]


def test_other_errors_are_not_retried():
    tried = []

    def work(rows):
        tried.append(len(rows))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        in_pieces([range(8)], work, halves)
    assert tried == [8]


@pytest.mark.parametrize(("pieces", "smaller"), [([range(8)], halves), ([8], half)])
def test_a_piece_that_does_not_fit_alone_is_an_error(pieces, smaller):
    def work(piece):
        raise MemoryError(piece if isinstance(piece, int) else len(piece))

    with pytest.raises(MemoryError, match=r"^1$"):
        in_pieces(pieces, work, smaller)
