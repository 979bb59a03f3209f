from __future__ import annotations

import pytest

from evomerge.errors import ConfigError
from evomerge.executors.division import divide

NODE = {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "where", "workers", "cpus", "gpus", "expected"),
    [
        ([{"CPU": 2}], "auto", None, None, None, (2, 1, 0)),
        ([{"CPU": 8}], "auto", 2, None, None, (2, 4, 0)),
        ([{"CPU": 8}], "cpu", None, 4, None, (2, 4, 0)),
        ([NODE], "auto", None, None, None, (2, 4, 1)),
        ([NODE], "cpu", 4, None, None, (4, 2, 0)),
        ([NODE], "auto", None, None, 0.5, (4, 2, 0.5)),
        ([NODE], "auto", None, None, 0.6, (2, 4, 0.6)),
        ([NODE], "cuda", None, 2, 2, (1, 2, 2)),
        ([NODE, NODE], "cuda", None, None, None, (4, 4, 1)),
        ([{"CPU": 4}, {"CPU": 4}], "cpu", 2, None, None, (2, 4, 0)),
        ([{"CPU": 6}, {"CPU": 3}], "cpu", 2, None, None, (2, 3, 0)),
        ([{"CPU": 4}, {"CPU": 4}], "cpu", 1, 6, None, None),
        ([NODE], "cuda", 3, None, None, None),
        ([NODE], "cuda", 3, None, 0.6, None),
        ([{"CPU": 2}, {"GPU": 2}], "cuda", 1, 1, None, None),
        ([], "cpu", None, None, None, None),
    ],
)
def test_division_of_a_cluster(nodes, where, workers, cpus, gpus, expected) -> None:
    """No worker spans two nodes, no share two GPUs: what could never start is refused."""
    if expected is None:
        with pytest.raises(ConfigError, match="do not fit"):
            divide(nodes, where, workers, cpus, gpus)
    else:
        assert divide(nodes, where, workers, cpus, gpus) == expected


@pytest.mark.parametrize(
    ("nodes", "share", "expected"),
    [
        ([{"CPU": 8}], 2, (4, 1, 0)),
        ([NODE, NODE], 2, (2, 4, 1)),
        ([NODE], 2, (1, 4, 1)),
        ([{"CPU": 2}], 3, (1, 1, 0)),
    ],
)
def test_studies_that_share_a_cluster_get_equal_parts(nodes, share, expected) -> None:
    assert divide(nodes, "auto", None, None, None, share=share) == expected
