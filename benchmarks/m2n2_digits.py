"""M2N2 on digits, from scratch and from two trained experts: the paper's first experiment.

``python benchmarks/m2n2_digits.py`` (about six minutes on one core; ``--quick`` for one). The last
line is one JSON object. Against Abrantes, Lange & Tang (2025), arXiv:2508.16204: a perceptron of
19,210 weights, 1,437 training digits, test accuracy of the member that is best on the training
digits. An evaluation is one pass over the training digits.

* From scratch: the archive holds weight vectors (:mod:`evomerge.optimizers.niches`), slerp with a
  split anywhere, Gaussian mutation. The paper's figure shows about 0.87 at 50,000 evaluations; the
  official code gave 0.853 at 10,000 and 0.875 at 50,000.
* From two experts (digits 0 to 4 and 5 to 9), no mutation: the optimizer itself
  (:class:`evomerge.optimizers.m2n2.M2n2`), which sees coefficients of 128 chunks and their Gram
  matrices, never a weight. The paper shows 0.683 at 10,000; the official code gave 0.698 at 5,000.
* Ablations of the latter. Paper at 10,000: no attraction 0.663, no split 0.578, plain GA 0.52.

``--train`` makes the experts anew (benchmarks/data/m2n2_digits.npz, committed).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import digits
import numpy as np

from evomerge.geometry import Geometry
from evomerge.optimizers.base import Problem
from evomerge.optimizers.m2n2 import M2n2
from evomerge.optimizers.niches import Archive, angle_between, cross, draw_cut
from evomerge.recipe import LayerGroup, ModelRef, Recipe
from evomerge.trial import Objective, Scores, Trial, TrialState

DATA = Path(__file__).parent / "data" / "m2n2_digits.npz"
N_CHUNKS = 128
SIGMA = 0.01  # of initial weights and of mutation, as the official code
HITS = Objective("digits", "digits", "acc")
RECIPE = Recipe(  # trials carry one; nothing here looks at it
    method="linear",
    models=(ModelRef("low", "low"), ModelRef("high", "high")),
    base=None,
    groups=(LayerGroup("all", ("w",)),),
    coefficients={"weight": np.ones((1, 2))},
)


def train() -> None:
    """Two experts as the official code makes them: 10 full-batch Adam steps, lr 0.003."""
    import torch

    X, y, _, _ = digits.load()
    experts = []
    for seed, wanted in enumerate((y < 5, y >= 5)):
        rng = np.random.default_rng(seed)
        start = (SIGMA * rng.standard_normal(digits.N_PARAMETERS)).astype(np.float32)
        w = {k: torch.tensor(v, requires_grad=True) for k, v in digits.unflatten(start).items()}
        adam = torch.optim.Adam(w.values(), lr=0.003)
        inputs, labels = torch.tensor(X[wanted]), torch.tensor(y[wanted])
        for _ in range(10):
            adam.zero_grad()
            out = torch.relu(inputs @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"]
            torch.nn.functional.cross_entropy(out, labels).backward()
            adam.step()
        experts.append(np.concatenate([v.detach().numpy().ravel() for v in w.values()]))
    DATA.parent.mkdir(exist_ok=True)
    np.savez_compressed(DATA, experts=np.array(experts, dtype=np.float32))


def scratch(seed: int, checkpoints: tuple[int, ...]) -> list[float]:
    """Test accuracy at each number of evaluations, from two random vectors."""
    X, y, X_test, y_test = digits.load()
    rng = np.random.default_rng(seed)
    archive: Archive[np.ndarray] = Archive(20)

    def mutant(theta: np.ndarray) -> np.ndarray:
        return theta + np.float32(SIGMA) * rng.standard_normal(len(theta), dtype=np.float32)

    found, n = [], 0
    while n < checkpoints[-1]:
        if len(archive) < 2:
            child = mutant(np.zeros(digits.N_PARAMETERS, dtype=np.float32))
        else:
            a, b = (archive.members[i] for i in archive.parents(rng))
            cut, t = draw_cut(digits.N_PARAMETERS, rng), float(rng.random())
            child = mutant(cross(a, b, cut, t, angle_between(a, b)))
        archive.add(child, digits.correct(child, X, y).astype(np.float32))
        n += 1
        if n in checkpoints:
            best = archive.members[int(archive.rows.sum(axis=1).argmax())]
            found.append(float(digits.correct(best, X_test, y_test).mean()))
    return found


def chunks() -> np.ndarray:
    """(P,) the chunk that each weight belongs to."""
    return np.arange(digits.N_PARAMETERS) * N_CHUNKS // digits.N_PARAMETERS


def pretrained(seed: int, n_evaluations: int, **settings: object) -> float:
    """Test accuracy after a search in coefficient space, from two experts."""
    X, y, X_test, y_test = digits.load()
    experts = np.load(DATA)["experts"]
    of = chunks()
    sizes = np.bincount(of).astype(float)
    starts = np.searchsorted(of, np.arange(N_CHUNKS))
    products = experts[:, None, :].astype(float) * experts[None, :, :]
    grams = np.add.reduceat(products, starts, axis=2).transpose(2, 0, 1)
    dim = 2 * N_CHUNKS
    geometry = Geometry(grams, sizes, np.eye(dim), np.zeros(dim), np.full(dim, 1.5))
    problem = Problem(dim, seed, (HITS,), np.full(dim, 1 / 3), geometry=geometry)
    optimizer = M2n2(problem, mutation=0.0, n_design=0, **settings)  # type: ignore[arg-type]

    def weights(x: np.ndarray) -> np.ndarray:
        c = geometry.coefficients(x).astype(np.float32)[of]
        return np.asarray(c[:, 0] * experts[0] + c[:, 1] * experts[1])

    def told(number: int, x: np.ndarray, label: str = "") -> Trial:
        hits = digits.correct(weights(x), X, y).astype(np.float32)
        scores = Scores({"digits": float(hits.mean())}, {}, {"digits": hits})
        kind = "reference" if label else "search"
        return Trial(number, kind, x, RECIPE, TrialState.COMPLETE, scores, label=label)

    for k, name in enumerate(("expert low", "expert high")):
        coefficients = np.zeros((N_CHUNKS, 2))
        coefficients[:, k] = 1
        x = geometry.point(coefficients)
        assert x is not None
        optimizer.tell([told(k, x, name)])
    for number in range(2, n_evaluations):
        optimizer.tell([told(number, optimizer.ask(1, number)[0])])
    best = max(optimizer.members, key=lambda m: m.trial.scores.values["digits"])
    return float(digits.correct(weights(best.x), X_test, y_test).mean())


ARMS: dict[str, dict[str, object]] = {
    "full": {},
    "no attraction": {"attraction": False},
    "no split": {"split": False},
    "no competition": {"alpha": 0.0},
    "plain GA": {"attraction": False, "split": False, "alpha": 0.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", action="store_true", help="make the experts anew")
    parser.add_argument("--quick", action="store_true", help="one seed, a tenth of the budget")
    arguments = parser.parse_args()
    if arguments.train:
        train()
        return
    scale, n_scratch, n_arms = (10, 1, 2) if arguments.quick else (1, 3, 5)
    began = time.perf_counter()
    marks = (10_000 // scale, 50_000 // scale)
    runs = [scratch(42 + s, marks) for s in range(n_scratch)]
    rate = n_scratch * marks[-1] / (time.perf_counter() - began)
    print(f"from scratch, {n_scratch} seed(s), {rate:.0f} evaluations/s:")
    for mark, values in zip(marks, zip(*runs, strict=True), strict=True):
        print(f"  {mark:6,}: median {statistics.median(values):.3f}  all {np.round(values, 3)}")
    budget = 5_000 // scale
    arms = {}
    print(f"from two experts, {budget:,} evaluations, {n_arms} seeds:")
    for name, settings in ARMS.items():
        values = [pretrained(42 + s, budget, **settings) for s in range(n_arms)]
        arms[name] = statistics.median(values)
        print(f"  {name:15s} median {arms[name]:.3f}  all {np.round(values, 3)}", flush=True)
    figures = {
        "scratch_10k": statistics.median(r[0] for r in runs),
        "scratch_50k": statistics.median(r[1] for r in runs),
        "pretrained_5k": arms["full"],
        "ablations": arms,
        "evaluations_per_second": round(rate),
        "seconds": round(time.perf_counter() - began),
        "quick": arguments.quick,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
