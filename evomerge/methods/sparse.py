"""Merges of pruned task vectors: prune x elect x normalize, for TIES, DARE, DELLA, breadcrumbs.

``W = W_0 + lambda C(w_1 P_1(W_1 - W_0), ..., w_K P_K(W_K - W_0))`` where P prunes a task vector to
its density and C sums what is left: all of it, or per entry only the values whose sign wins the
election (and, normalised, divided by the sum of their weights). How each method prunes is in its
file; this is what mergekit calls generalized task arithmetic, and by default the merges are equal
to mergekit 0.1.5's up to rounding, except for rescaling (below).

Settings that are not searched:

* ``normalize``: divide by the sum of weights (of those that agree, where signs are elected).
* ``rescale``: ``none``; ``l1``, mergekit's ``true``: every pruned task vector is scaled to the sum
  of magnitudes it had, which costs a second pass per candidate; or, where masks are random,
  ``1/p``, the papers' form: what is kept is divided by the probability of keeping it.
* ``election`` (where signs are elected): ``weighted``, as mergekit: the sign of ``sum_k w_k t_k``;
  ``paper``: that of ``sum_k t_k``, which no weight can change, so that without ``normalize`` the
  merge is linear in the weights.
* ``equal`` (where entries of a tensor are ranked): which of equally large entries rank higher.
  ``first``: the earlier ones, the same on every machine; ``torch``: as ``torch.sort`` happens to
  leave them, which is mergekit's choice where both run the same torch on the same kind of
  machine. Changes of 16-bit weights are often equal.
* ``seed`` (where masks are random). An entry's uniform belongs to (seed, content of the expert,
  tensor, position): masks at different densities nest and the score is smooth in the density.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from evomerge.errors import ConfigError
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.counter import Key, key, shifted
from evomerge.methods.kernels import CHUNK, piecewise
from evomerge.methods.lanes import Lanes
from evomerge.methods.parts import wide_dtype, wide_parts
from evomerge.methods.ranks import LEVELS, middle, ranked, ranked_in
from evomerge.methods.sparse_kernel import Form, widened

_AS_MERGEKIT = {True: "l1", False: "none"}  # as mergekit writes them


class Prune(Protocol):
    """How a task vector is thinned out.

    Attributes:
        ranks: What entries are ranked against: ``"none"``, the whole ``"tensor"`` (largest first)
            or their ``"row"`` (smallest first).
        random: Whether masks are drawn.
        outliers: Whether some of the largest entries are dropped.
    """

    ranks: str
    random: bool
    outliers: bool

    def window(self, density: float, shared: Mapping[str, float], n: int) -> tuple[float, float]:
        """What is kept at a density.

        Args:
            density: Share to keep; 0 and less is nothing, 1 and more everything.
            shared: The method's other parameters.
            n: Entries that are ranked together.

        Returns:
            Ranks ``[first, stop)``; where masks are drawn, the threshold of the 16-bit uniforms
            at rank 0, and its slope per rank (0 where there are no ranks: then the threshold is
            a whole number).
        """
        ...


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the host keeps of a tensor.

    Attributes:
        keys: One stream of uniforms per expert; empty where masks are not drawn.
        n: Entries that are ranked together.
        norms: Sum of the magnitudes of every task vector; empty unless rescaled to it.
    """

    keys: tuple[Key, ...]
    n: int
    norms: tuple[float, ...]


@dataclasses.dataclass(eq=False)
class Sparse:
    """A merge method of this family; see :class:`evomerge.methods.base.MergeMethod`.

    Attributes:
        name: Its key in METHODS.
        prune: How task vectors are thinned out.
        elects: Whether signs are elected.
        parameters: ``weight``, ``density``, ``lambda`` and the prune's own.
        fixed: The settings above that the method has, with its defaults.
    """

    name: str
    prune: Prune
    elects: bool
    parameters: Mapping[str, Parameter]
    fixed: Mapping[str, Scalar]
    needs_base: bool = True
    n_experts: tuple[int, int | None] = (1, None)

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey: density is per tensor, as in mergekit. Checks the settings."""
        self._rescale(fixed)
        self._election(fixed)
        self._by_torch(fixed)

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """Base and experts as they are, and 2 bytes of rank per entry and expert."""
        if sources.base is None:
            raise ConfigError(f"{self.name} needs a base model; set models.base.")
        rescale = self._rescale(fixed)
        self._election(fixed)
        by_torch = self._by_torch(fixed)
        base = sources.base
        n = self._ranked_together(base)
        ranks: list[torch.Tensor] = []
        if self.prune.ranks != "none":
            for expert in sources.experts:
                if by_torch:
                    found = _ranked_by_torch(base, expert, ascending=self.prune.outliers)
                else:
                    found = _ranked(base, expert, n, descending=self.prune.ranks == "tensor")
                ranks.append(found.to(base.device))
        keys: tuple[Key, ...] = ()
        if self.prune.random:
            who = sources.keys or tuple(f"expert {i}" for i in range(len(sources.experts)))
            keys = tuple(key(str(fixed["seed"]), w, sources.name) for w in who)
        norms: tuple[float, ...] = ()
        if rescale == "l1":
            norms = tuple(_norm(base, e) for e in sources.experts)
        return Basis((base, *sources.experts, *ranks), Prepared(keys, n, norms))

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge."""
        prepared: Prepared = basis.extra
        weights, densities = coefficients["weight"], coefficients["density"]
        shared = {p: coefficients[p][0] for p, about in self.parameters.items() if about.shared}
        windows = [self._window(d, shared, prepared.n) for d in densities]
        rescale, normalize = self._rescale(fixed), bool(fixed["normalize"])
        ranked = self.prune.ranks != "none"
        form = Form(
            experts=len(weights),
            random=self.prune.random,
            ranked=ranked,
            by_entry=rescale == "1/p" and ranked,
            bounded=self.prune.outliers,
            election=self._election(fixed),
            normalize=normalize and self.elects,
        )
        total = sum(weights)
        plain = normalize and not self.elects and abs(total) >= 1e-8
        scale = shared["lambda"] / (total if plain else 1.0)
        numbers = [*weights, *weights, *(b for window in windows for b in window)]

        def halves(start: int) -> list[int]:
            streams = [shifted(of, start // 2) for of in prepared.keys]  # two entries per hash
            return [half for of in streams for half in (of.first, of.second)]

        if rescale == "1/p" and not ranked:
            factors = [2.0**16 / threshold if threshold else 1.0 for threshold, _ in windows]
        elif rescale == "l1":
            factors = _l1_factors(form, out, basis, numbers, halves)
        else:
            factors = [1.0] * len(weights)
        for k, factor in enumerate(factors):
            numbers[k] *= factor * scale
        piecewise(form.macros(), form.merge, out, basis.tensors, numbers, whole=halves)

    def _window(self, density: float, shared: Mapping[str, float], n: int) -> tuple[float, float]:
        """As :meth:`Prune.window`, in ranks as they are stored."""
        first, second = self.prune.window(density, shared, n)
        if self.prune.random:
            return first + middle(n) * second, second
        first, stop = _levels((first, second), n)
        return first - middle(n), stop - middle(n)

    def _ranked_together(self, tensor: torch.Tensor) -> int:
        """Number of entries that are ranked together: a row's (dimension 1's), or all."""
        if self.prune.ranks == "row" and tensor.dim() > 1:
            return tensor.shape[1]
        return tensor.numel()

    def _rescale(self, fixed: Mapping[str, Scalar]) -> str:
        given = fixed["rescale"]
        known = ("none", "l1", "1/p") if self.prune.random else ("none", "l1")
        chosen = _AS_MERGEKIT[given] if isinstance(given, bool) else given
        if chosen not in known:
            raise ConfigError(
                f"{self.name}: fixed.rescale is {given!r}; expected one of {', '.join(known)}, or "
                "true or false as in mergekit."
            )
        return str(chosen)

    def _election(self, fixed: Mapping[str, Scalar]) -> str:
        if not self.elects:
            return "none"
        if fixed["election"] not in {"weighted", "paper"}:
            raise ConfigError(
                f"{self.name}: fixed.election is {fixed['election']!r}; expected weighted or "
                "paper."
            )
        return str(fixed["election"])

    def _by_torch(self, fixed: Mapping[str, Scalar]) -> bool:
        chosen = fixed.get("equal", "first")
        if chosen not in {"first", "torch"}:
            raise ConfigError(
                f"{self.name}: fixed.equal is {chosen!r}; expected first (of equally large "
                "entries the earlier one) or torch (as torch.sort leaves them, like mergekit)."
            )
        return chosen == "torch"


def _ranked_by_torch(base: torch.Tensor, expert: torch.Tensor, *, ascending: bool) -> torch.Tensor:
    """Ranks from the largest entry on, ties as mergekit's sort leaves them.

    It sorts fp32 numbers: for TIES in descending order, for breadcrumbs in ascending order.
    """
    wide = wide_dtype(base)
    sizes = (expert.to(wide) - base.to(wide)).abs_().reshape(-1).cpu().float()
    order = torch.argsort(sizes, descending=not ascending)
    return ranked_in(order.flip(0) if ascending else order).view(base.shape)


def _ranked(base: torch.Tensor, expert: torch.Tensor, n: int, *, descending: bool) -> torch.Tensor:
    """The ranks of one task vector, in the order of its entries."""
    wide = torch.float64 if torch.float64 in {base.dtype, expert.dtype} else torch.float32
    sizes = torch.empty(base.shape, dtype=torch.float32)
    for part, (origin, other) in wide_parts((base, expert), wide):
        sizes.view(-1)[part] = (other - origin).abs_()
    if n == sizes.numel():
        return ranked(sizes.reshape(1, n), descending=descending)
    rows = sizes.movedim(1, -1)
    ranks = ranked(rows.reshape(-1, n), descending=descending)
    return ranks.view(rows.shape).movedim(-1, 1).contiguous()


def _levels(window: tuple[float, float], n: int) -> tuple[float, float]:
    """An interval of ranks below n as one of levels, which are coarser beyond LEVELS entries."""
    if n <= LEVELS:
        return window
    first, stop = (round(r * LEVELS / n) for r in window)
    return first, max(stop, first + (window[1] > window[0]))


def _norm(base: torch.Tensor, expert: torch.Tensor) -> float:
    """Sum of the magnitudes of a task vector."""
    wide = wide_dtype(base)
    pairs = zip(*(torch.split(t.reshape(-1), CHUNK) for t in (base, expert)), strict=True)
    return sum(float((e.to(wide) - b.to(wide)).abs_().sum()) for b, e in pairs)


def _l1_factors(
    form: Form,
    out: torch.Tensor,
    basis: Basis,
    numbers: Sequence[float],
    halves: Callable[[int], Sequence[int]],
) -> list[float]:
    """Sum of magnitudes before pruning over that after it, per expert; 1 where either is 0."""
    k = form.experts
    kept = [0.0] * k

    def add(
        piece: torch.Tensor, tensors: Sequence[torch.Tensor], floats: Any, ints: Any, lanes: Lanes
    ) -> None:
        base = widened(tensors[0], wide_dtype(piece), lanes)
        for i, vector in enumerate(form.pruned(base, tensors[1:], floats[2 * k :], ints, lanes)):
            kept[i] += float(vector.abs_().sum())

    piecewise(None, add, out, basis.tensors, numbers, whole=halves)
    norms = basis.extra.norms
    return [a / b if min(a, b) >= 1e-7 else 1.0 for a, b in zip(norms, kept, strict=True)]
