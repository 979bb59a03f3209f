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


@pytest.mark.parametrize(
    ("nodes", "where", "workers", "cpus", "gpus", "expected"),
    [
        ([{"CPU": 2}], "cpu", 8, None, None, (8, 1, 0)),
        ([{"CPU": 2}], "cpu", 8, 4, None, (8, 4, 0)),
        ([{"CPU": 8, "GPU": 1}], "auto", 4, None, None, (4, 8, 1)),
        ([{"CPU": 0}], "cuda", 4, 8, None, (4, 8, 1)),
        ([], "cpu", 2, None, None, (2, 1, 0)),
        ([{"CPU": 8}], "auto", 2, None, None, (2, 4, 0)),
        ([{"CPU": 0}], "cpu", None, None, None, None),
        ([{"CPU": 8}], "cuda", None, None, None, None),
    ],
)
def test_where_nodes_may_join_a_number_of_workers_is_a_wish(
    nodes, where, workers, cpus, gpus, expected
) -> None:
    """Each gets what those that fit now get; how many is never guessed from an empty cluster."""
    if expected is None:
        with pytest.raises(ConfigError, match=r"say how many: executor\.workers"):
            divide(nodes, where, workers, cpus, gpus, nodes_may_join=True)
    else:
        assert divide(nodes, where, workers, cpus, gpus, nodes_may_join=True) == expected
