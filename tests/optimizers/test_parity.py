"""Our folds against the libraries they stand on, at equal budgets. The slow ones print figures."""

import warnings

import numpy as np
import pytest
from optimizer_fakes import MATH, simulate

from evomerge import pareto
from evomerge.optimizers.base import Problem, rng_for
from evomerge.optimizers.cma_es import CmaEs
from evomerge.optimizers.nsga2 import Nsga2
from evomerge.trial import Objective

DIM = 6
SEEDS = range(5)


def sphere(x):
    return float(np.mean((x - 0.35) ** 2))


def ellipsoid(x):
    """Condition 100, rotated."""
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.standard_normal((DIM, DIM)))
    target = rng.uniform(0.2, 0.8, DIM)
    return float((100 ** np.linspace(-1, 0, DIM)) @ (Q.T @ (x - target)) ** 2)


def cma_es(loss, seed, n_trials):
    """Our CMA-ES without what pycma does not do by itself; the trials."""
    problem = Problem(DIM, seed, (MATH,), np.full(DIM, 0.5))
    optimizer = CmaEs(problem, restarts="none", evaluate_mean=False)
    return [t.x for t in simulate(optimizer, lambda x: {"math": -loss(x)}, n_trials).told]


def pycma(loss, seed, n_trials, *, same_draws=False):
    """pycma's own loop; every point that it evaluated.

    Args:
        loss: What is minimised.
        seed: Of the run.
        n_trials: How many.
        same_draws: Draw trial k from (seed, k) as we do, and forget, as a fold must, which points
            were its own: it then clips steps beyond sqrt(d) + 2 d / (d + 2), one in sixty here.
    """
    import cma
    from cma.sigma_adaptation import CMAAdaptSigmaCSA

    numbers = iter(range(10**6))

    def randn(n, d):
        return np.array([rng_for(seed, next(numbers)).standard_normal(d) for _ in range(n)])

    options = {"bounds": [0, 1], "seed": seed + 1, "verbose": -9}
    options |= {"tolx": 1e-9, "tolfun": 1e-30, "tolfunhist": 1e-30}
    if same_draws:
        options |= {"seed": np.nan, "randn": randn, "AdaptSigma": CMAAdaptSigmaCSA}
    told = []
    state = np.random.get_state()  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        es = cma.CMAEvolutionStrategy(np.full(DIM, 0.5), 0.2, options)
        while len(told) < n_trials:
            X = es.ask()
            if same_draws:
                es.sent_solutions.clear()
            es.tell(X, [loss(np.asarray(x)) for x in X])
            told += [np.asarray(x) for x in X]
    np.random.set_state(state)  # noqa: NPY002
    return told[:n_trials]


@pytest.mark.parametrize("loss", [sphere, ellipsoid])
def test_cma_es_walks_as_pycma_does(loss):
    """From the same draws, with one worker: the same points, generation after generation."""
    for seed in SEEDS:
        ours = np.array(cma_es(loss, seed, 180))
        assert np.allclose(ours, pycma(loss, seed, 180, same_draws=True), atol=1e-6)


@pytest.mark.parametrize("loss", [sphere, ellipsoid])
def test_cma_es_ends_where_pycma_does(loss):
    """From other draws, pycma as it comes: the final log10 loss of 5 seeds, within noise."""
    logs = [
        np.array([np.log10(min(map(loss, run(loss, seed, 360)))) for seed in SEEDS])
        for run in (cma_es, pycma)
    ]
    medians = [float(np.median(log)) for log in logs]
    print(f"\n{loss.__name__}: log10 loss after 360 trials, cma_es and pycma: ", end="")
    print(*(f"{np.median(a):.2f} ({a.min():.2f} to {a.max():.2f})" for a in logs))
    assert abs(medians[0] - medians[1]) < 2 * np.sqrt(np.mean([log.var(ddof=1) for log in logs]))


def objectives(m):
    return tuple(Objective(f"o{i}", "t", "acc") for i in range(m))


def front(problem, told):
    """Hypervolume of the told points, to 1.1 times the nadir of pymoo's true front."""
    truth = -problem.pareto_front()
    low, high = truth.min(axis=0), truth.max(axis=0)
    reference = low - 0.1 * (high - low)
    F = -problem.evaluate(np.array(told), return_values_of=["F"])
    return pareto.hypervolume(F[pareto.non_dominated(F)], reference)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dim"), [("zdt1", 12), ("zdt3", 12), ("dtlz2", 12)], ids=str)
def test_nsga2_reaches_pymoos_hypervolume(name, dim):
    """Population 40, 2,000 trials, 4 workers, 5 seeds; pymoo with the same operators' settings.

    Every evaluated point of ours counts, and of pymoo's everything that survived a generation.
    """
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.optimize import minimize
    from pymoo.problems import get_problem

    problem = get_problem(name, n_var=dim)
    m = problem.n_obj

    def score(x):
        return {f"o{i}": -float(v) for i, v in enumerate(problem.evaluate(x[None])[0])}

    volumes = {"nsga2": [], "pymoo": [], "pymoo, our etas": []}
    for seed in SEEDS:
        ours = Nsga2(Problem(dim, seed, objectives(m), np.full(dim, 0.5)), pop_size=40)
        log = simulate(ours, score, 2000, workers=4)
        volumes["nsga2"].append(front(problem, [t.x for t in log.told]))
        for label, operators in (
            ("pymoo", {}),
            ("pymoo, our etas", {"crossover": SBX(eta=5, prob=0.9), "mutation": PM(eta=10)}),
        ):
            done = minimize(
                problem,
                NSGA2(pop_size=40, **operators),
                ("n_eval", 2000),
                seed=seed,
                save_history=True,
            )
            told = np.concatenate([h.pop.get("X") for h in done.history])
            volumes[label].append(front(problem, told))
    medians = {k: float(np.median(v)) for k, v in volumes.items()}
    print(f"\n{name}, d = {dim}: " + ", ".join(f"{k} {v:.4f}" for k, v in medians.items()))
    assert medians["nsga2"] >= 0.99 * max(medians["pymoo"], medians["pymoo, our etas"])
