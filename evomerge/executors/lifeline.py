"""The two processes that a driver on Ray cannot live without: Ray's head and its own raylet.

Ray ends a driver that lost one of them from inside its own threads: no exception, exit code 1, at
best a line of its log. So the driver looks for itself, and says what happened while it can.
Both are asked by opening a connection, nothing more: most calls to a head that is gone block, and
some end the process (``ray.nodes()``, where the head came back without its memory).
"""

from __future__ import annotations

import math
import socket
import time
from typing import Any

from evomerge.errors import StudyError

PATIENCE = 45.0
"""Seconds that a head may take to come back; after 60 Ray ends the driver
(``gcs_rpc_server_reconnect_timeout_s``)."""

_CONTINUES = "What is finished is kept: the same command continues, once the cluster is up again."


class Lifeline:
    """Watches the head of the cluster and the raylet of this node.

    Args:
        ray: The module, connected. Where that is through Ray Client (``ray://``), nothing is
            watched: the client's server is the driver.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._head = self._raylet = ("", 0)
        self._looked, self._lost = -math.inf, math.inf
        self._watches = not ray.util.client.ray.is_connected()
        if self._watches:
            context = ray.get_runtime_context()
            host, _, port = context.gcs_address.rpartition(":")
            self._head = (host.strip("[]"), int(port))
            own = context.get_node_id()
            node = next(n for n in ray.nodes() if n["NodeID"] == own)
            self._raylet = (node["NodeManagerAddress"], node["NodeManagerPort"])

    def check(self, *, now: bool = False) -> bool:
        """Looks, at most once a second.

        Args:
            now: Looks in any case.

        Returns:
            Whether the head answered; if not, it may yet come back.

        Raises:
            StudyError: The raylet is gone, or the head for longer than ``PATIENCE``.
        """
        if self._watches and (now or time.monotonic() - self._looked >= 1.0):
            self._look()
        return math.isinf(self._lost)

    def _look(self) -> None:
        self._looked = time.monotonic()
        # One that is only slow does not refuse.
        if isinstance(_knock(self._raylet), ConnectionRefusedError):
            raise StudyError(
                "Ray's own process on this machine (the raylet) is gone; when memory runs out it "
                f"is among those that are killed. {_CONTINUES}"
            )
        if _knock(self._head) is not None:
            self._lost = min(self._lost, self._looked)
            if self._looked - self._lost > PATIENCE:
                raise StudyError(
                    f"Ray's head ({self._head[0]}:{self._head[1]}) does not answer for "
                    f"{PATIENCE:.0f} s: it was stopped, killed, or cannot be reached. {_CONTINUES}"
                )
        else:
            self._lost = math.inf

    def check_remembered(self) -> None:
        """Raises where a head was started anew in the old one's place.

        Workers that run go on, but one that is lost can never be replaced.

        Raises:
            StudyError: The head knows nothing of this driver, or as :meth:`check`.
        """
        if not self._watches or not self.check(now=True):
            return
        refused = getattr(self._ray.exceptions, "AuthenticationError", ())  # not in older versions
        try:
            self._ray.util.list_named_actors()
        except refused as e:
            raise StudyError(
                f"Ray's head was restarted and knows nothing of this search. {_CONTINUES}"
            ) from e


def _knock(address: tuple[str, int]) -> OSError | None:
    """Opens a connection and closes it; what stands in the way, if anything."""
    try:
        socket.create_connection(address, timeout=1.0).close()
    except OSError as e:
        return e
    return None
