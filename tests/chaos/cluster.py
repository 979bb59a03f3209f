"""A real Ray cluster on this machine: a head without cores, and nodes with two each.

The head keeps what it knows in RocksDB, so that it can be killed alone and come back; it notices
a dead node within a second, where Ray's defaults take fifteen.
"""

from __future__ import annotations

import random
import shutil
import tempfile

import psutil
from ray.cluster_utils import Cluster


class ChaosCluster:
    """The cluster, and what can be done to it. Every deed says whether there was one to do.

    Args:
        nodes: Nodes at the start.
        remembers: Whether a head that comes back knows what it knew.
    """

    def __init__(self, nodes: int = 2, *, remembers: bool = True) -> None:
        self._memory = tempfile.mkdtemp()
        settings = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200}
        if remembers:
            settings |= {"gcs_storage": "rocksdb", "gcs_storage_path": self._memory}
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "_system_config": settings, "include_dashboard": False},
        )
        self._nodes = []
        for _ in range(nodes):
            self.add_node()

    @property
    def address(self) -> str:
        return self._cluster.address

    def close(self) -> None:
        self._cluster.shutdown()
        shutil.rmtree(self._memory)

    def kill_worker(self, rng: random.Random) -> bool:
        mine = psutil.Process().children(recursive=True)
        actors = [p for p in mine if name_of(p).startswith("ray::SleepingActor")]
        if actors:
            rng.choice(actors).kill()
        return bool(actors)

    def kill_node(self, rng: random.Random) -> bool:
        self.remove_node(rng.randrange(len(self._nodes)))
        self.add_node()
        return True

    def add_node(self) -> None:
        self._nodes.append(self._cluster.add_node(num_cpus=2))

    def remove_node(self, which: int) -> None:
        """A node dies, and all that runs there."""
        self._cluster.remove_node(self._nodes.pop(which), allow_graceful=False)

    def restart_gcs(self) -> bool:
        """The head's own process dies and comes back."""
        self._cluster.head_node.kill_gcs_server(check_alive=False)
        self._cluster.head_node.start_gcs_server()
        return True

    def kill_head(self) -> bool:
        """The whole head node dies, the raylet of the driver with it."""
        self._cluster.head_node.kill_all_processes(
            check_alive=False, allow_graceful=False, wait=True
        )
        return True


def name_of(process: psutil.Process) -> str:
    """Empty where it has just ended."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""
