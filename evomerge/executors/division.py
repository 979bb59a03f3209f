"""How a cluster's CPU cores and GPUs are divided among workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.errors import ConfigError


def divide(
    nodes: Sequence[Mapping[str, float]],
    device: str,
    workers: int | None,
    cpus: int | None,
    gpus: float | None,
    *,
    share: int = 1,
    nodes_may_join: bool = False,
) -> tuple[int, int, float]:
    """Fills in the settings that are null, and refuses what could never be scheduled.

    Args:
        nodes: ``{"CPU": cores, "GPU": gpus}`` of every node.
        device: Where the live models shall be: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        workers: How many; None for as many as fit.
        cpus: Cores per worker; None for an equal share of all.
        gpus: GPUs per worker, a share or a whole number; None for one where there are any and
            ``device`` is not the CPU.
        share: How many studies divide the cluster among themselves.
        nodes_may_join: Whether a number of ``workers`` that does not fit now is taken as a wish.

    Returns:
        Workers, and the CPU cores and GPUs of each.

    Raises:
        ConfigError: The nodes do not have that much.
    """
    n_cpus = int(sum(n.get("CPU", 0) for n in nodes))
    n_gpus = int(sum(n.get("GPU", 0) for n in nodes))
    if gpus is None:
        gpus = 1.0 if device == "cuda" or (device == "auto" and n_gpus) else 0.0
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise ConfigError(
            f"executor.gpus_per_worker: expected a share in [0, 1] or a whole number, got {gpus}."
        )
    wished = workers is not None and nodes_may_join
    present = max(1, room(nodes, cpus or (0 if gpus else 1), gpus) // share)
    if workers is None:
        workers = present
    if cpus is None:
        n = share * min(workers, present)
        shares = range(n_cpus // n, 0, -1)
        cpus = next((c for c in shares if room(nodes, c, gpus) >= n), 1)
    fit = room(nodes, cpus, gpus)
    if workers > fit and not wished:
        raise ConfigError(
            f"{workers} worker(s) with {cpus} CPU core(s) and {gpus:g} GPU(s) each do not fit: "
            f"the cluster has {n_cpus} core(s) and {n_gpus} GPU(s) on {len(nodes)} node(s), room "
            f"for {fit}. Lower executor.workers, executor.cpus_per_worker or "
            "executor.gpus_per_worker."
            + " Where nodes are yet to come, say how many: executor.workers."
            * nodes_may_join
        )
    return workers, cpus, gpus


def room(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: float) -> int:
    """How many workers fit; none spans two nodes, and no share spans two GPUs."""
    total = 0
    for node in nodes:
        fits = []
        if cpus:
            fits.append(int(node.get("CPU", 0) // cpus))
        if gpus >= 1:
            fits.append(int(node.get("GPU", 0) // gpus))
        elif gpus > 0:
            fits.append(int(node.get("GPU", 0)) * int(1 / gpus + 1e-9))
        total += min(fits)
    return total
