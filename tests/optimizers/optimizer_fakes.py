"""Trials without models, and a study loop without a study."""

import dataclasses

import numpy as np

from evomerge.recipe import LayerGroup, ModelRef, Recipe
from evomerge.trial import Objective, Scores, Trial, TrialState

RECIPE = Recipe(
    method="linear",
    models=(ModelRef("math", "m"), ModelRef("code", "c")),
    base=ModelRef("base", "b"),
    groups=(LayerGroup("all", ("w",)),),
    coefficients={"weight": np.array([[0.5, 0.5]])},
)
MATH = Objective("math", "t1", "acc")
CODE = Objective("code", "t2", "acc")


def make_trial(number, x, values=None, *, state=None, kind="search", label="", split="search"):
    """A finished trial: COMPLETE with ``values`` (objective -> signed value), else FAILED."""
    if state is None:
        state = TrialState.FAILED if values is None else TrialState.COMPLETE
    return Trial(
        number=number,
        kind=kind,
        x=None if x is None else np.asarray(x, dtype=float),
        recipe=RECIPE,
        state=state,
        scores=None if values is None else Scores(dict(values), {}, {}),
        error="boom" if state is TrialState.FAILED else None,
        label=label,
        split=split,
    )


def estimated(number, x, values, error=0.01):
    """A PRUNED trial, as racing leaves it: estimates and their standard errors."""
    trial = make_trial(number, x, values, state=TrialState.PRUNED)
    errors = dict.fromkeys(values, error)
    return dataclasses.replace(trial, scores=Scores(dict(values), errors, {}, asked=9))


def race(optimizer, score, n_trials, *, seed=0, error=0.01, warm=()):
    """A raced search: what does not beat the best (enter the front) is told as an estimate."""
    rng, told = np.random.default_rng(seed), list(warm)
    optimizer.tell(warm)
    for number in range(len(warm), len(warm) + n_trials):
        x = optimizer.ask(1, number)[0]
        values = score(x)
        rivals = [t.scores.values for t in told if t.state is TrialState.COMPLETE]
        if optimizer.pareto:
            lost = any(all(r[k] >= v for k, v in values.items()) for r in rivals)
        else:
            lost = any(sum(r.values()) >= sum(values.values()) for r in rivals)
        if lost:
            noisy = {k: v + error * float(rng.standard_normal()) for k, v in values.items()}
            trial = estimated(number, x, noisy, error)
        else:
            trial = make_trial(number, x, values)
        optimizer.tell([trial])
        told.append(trial)
    return Log(told, [])


def running(number, x, kind="search"):
    """A trial that was asked for and not yet told."""
    return make_trial(number, x, state=TrialState.RUNNING, kind=kind)


def two_bowls(x):
    """Two quadratics with different optima; normalised so that 1 is perfect."""
    return {
        "math": 1 - float(np.mean((x - 0.3) ** 2)),
        "code": 1 - float(np.mean((x - 0.7) ** 2)),
    }


def references(dim, score=two_bowls):
    """Base (outside the space), an expert outside and one inside it, and the average."""
    rows = [
        ("base", None, np.full(dim, 0.0)),
        ("expert math", None, np.full(dim, 0.3)),
        ("expert code", np.full(dim, 1.0), np.full(dim, 1.0)),
        ("average", np.full(dim, 0.5), np.full(dim, 0.5)),
    ]
    return [
        make_trial(i, x, score(at), kind="reference", label=label)
        for i, (label, x, at) in enumerate(rows)
    ]


@dataclasses.dataclass
class Log:
    """What a simulated search did.

    Attributes:
        told: Trials in told order.
        asks: (n told before, first, n, pending, points) of every ask.
    """

    told: list
    asks: list


def simulate(
    optimizer, score, n_trials, *, workers=1, seed=0, fail=0.0, prune=0.0, warm=(), late=()
):
    """The study's loop: ``workers`` slots, random completion order, some failures.

    References are told first (``warm``), or are pending when the search begins (``late``).
    """
    rng = np.random.default_rng(seed)
    log = Log([], [])
    for trial in warm:
        optimizer.tell([trial])
        log.told.append(trial)
    first = number = len(warm) + len(late)
    pending = [running(t.number, t.x, kind="reference") for t in late]
    while True:
        n = min(workers - len(pending), first + n_trials - number)
        if n > 0:
            points = optimizer.ask(n, number, tuple(pending))
            log.asks.append((len(log.told), number, n, tuple(pending), points))
            for x in points:
                pending.append(running(number, x))
                number += 1
        if not pending:
            return log
        done = pending.pop(int(rng.integers(len(pending))))
        if done.kind == "reference":
            reference = next(t for t in late if t.number == done.number)
            optimizer.tell([reference])
            log.told.append(reference)
            continue
        u = rng.random()
        if u < fail:
            trial = make_trial(done.number, done.x)
        else:
            state = TrialState.PRUNED if u < fail + prune else TrialState.COMPLETE
            trial = make_trial(done.number, done.x, score(done.x), state=state)
        optimizer.tell([trial])
        log.told.append(trial)


def best(log, score):
    """The best scalar among the COMPLETE search trials."""
    return max(
        score(t.x) for t in log.told if t.state is TrialState.COMPLETE and t.kind == "search"
    )
