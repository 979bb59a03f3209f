"""The digits problem: scikit-learn's bundled 8 x 8 digits and a two-layer perceptron, in numpy.

Small enough to score thousands of merges in a minute, real enough to have a Pareto front. Pixels
are raw (0 to 16), as in Sakana's natural_niches.
"""

from __future__ import annotations

import functools

import numpy as np

N_PIXELS, N_HIDDEN, N_CLASSES = 64, 256, 10
SHAPES = {
    "w1": (N_PIXELS, N_HIDDEN),
    "b1": (N_HIDDEN,),
    "w2": (N_HIDDEN, N_CLASSES),
    "b2": (N_CLASSES,),
}
"""Tensors of the perceptron, in the order in which they lie in a flat vector."""
N_PARAMETERS = sum(int(np.prod(s)) for s in SHAPES.values())  # 19,210


@functools.cache
def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(X_train (1437, 64), y_train, X_test (360, 64), y_test): first 80% and the rest."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    X = X.astype(np.float32)
    n = int(0.8 * len(X))
    return X[:n], y[:n], X[n:], y[n:]


def unflatten(theta: np.ndarray) -> dict[str, np.ndarray]:
    """Views of a flat (19210,) vector, by tensor name."""
    found, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        found[name] = theta[start : start + size].reshape(shape)
        start += size
    return found


def logits(theta: np.ndarray, X: np.ndarray) -> np.ndarray:
    """(n, 10) outputs of the perceptron: ReLU(X w1 + b1) w2 + b2."""
    w = unflatten(theta)
    hidden = X @ w["w1"]
    hidden += w["b1"]
    np.maximum(hidden, 0, out=hidden)
    found: np.ndarray = hidden @ w["w2"] + w["b2"]
    return found


def correct(theta: np.ndarray, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n,) bool: which rows are classified correctly."""
    hits: np.ndarray = logits(theta, X).argmax(axis=1) == y
    return hits


def probability(theta: np.ndarray, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n,) float32 in [0, 1]: softmax probability of each row's own class."""
    found = logits(theta, X)
    found -= found.max(axis=1, keepdims=True)
    np.exp(found, out=found)
    own: np.ndarray = found[np.arange(len(y)), y] / found.sum(axis=1)
    return own
