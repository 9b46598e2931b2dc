"""TSTR: train on synthetic, test on real. Reads real records: for simulations and a site itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, recall_score
from sklearn.preprocessing import normalize

# Fixed for every method and every data set: a classifier tuned per method would hide differences.
_INVERSE_PENALTY = 0.01
_NEVER = -1e6  # a bias by which a class is never chosen


@dataclass(frozen=True)
class Utility:
    """Fractions in [0, 1] on real test records."""

    accuracy: float
    balanced_accuracy: float


def _on_sphere(x: NDArray[np.floating]) -> NDArray[np.float32]:
    """sqrt(d) x/|x| for each row: per-record scaling, nothing learnt from the data.

    float32 halves the time of a fit and changed no accuracy in the fourth digit.
    """
    return np.asarray(np.sqrt(x.shape[1]) * normalize(np.asarray(x, np.float64)), np.float32)


def fit(
    x: NDArray[np.floating], y: NDArray[np.integer]
) -> Callable[[NDArray[np.floating]], NDArray[np.int64]]:
    """The fixed classifier, fitted to records [n, d]; the result labels other records.

    All records are put on the sphere of radius sqrt(d) first. One class only: it is always
    predicted. Raises ``ValueError`` without records.
    """
    classes = np.unique(y)
    if len(classes) == 0:
        raise ValueError("a classifier needs at least one training record")
    if len(classes) == 1:
        return lambda other: np.full(len(other), classes[0], np.int64)
    model = _fitted(x, y)
    return lambda other: np.asarray(model.predict(_on_sphere(other)), np.int64)


def linear_classifier(
    x: NDArray[np.floating], y: NDArray[np.integer], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(weight [C, d], bias [C]) of the fixed classifier on x/|x|; absent classes are never chosen.

    Raises ``ValueError`` without records.
    """
    present = np.unique(y)
    if len(present) == 0:
        raise ValueError("a classifier needs at least one training record")
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, _NEVER)
    bias[present] = 0.0
    if len(present) > 1:
        model = _fitted(x, y)
        # One row for two classes: the second one's log odds.
        rows, offsets = model.coef_, model.intercept_
        if len(present) == 2:
            rows, offsets = np.vstack([0 * rows, rows]), np.append(0.0, offsets)
        weight[present], bias[present] = np.sqrt(x.shape[1]) * rows, offsets
    return weight, bias


def _fitted(x: NDArray[np.floating], y: NDArray[np.integer]) -> LogisticRegression:
    return LogisticRegression(C=_INVERSE_PENALTY, max_iter=300, tol=1e-3).fit(_on_sphere(x), y)


def score(predicted: NDArray[np.integer], truth: NDArray[np.integer]) -> Utility:
    """Both accuracies of labels [n]; balanced: the mean recall of the classes in ``truth``."""
    recall = recall_score(truth, predicted, labels=np.unique(truth), average="macro")
    return Utility(
        accuracy=float(accuracy_score(truth, predicted)), balanced_accuracy=float(recall)
    )


def tstr(
    train_x: NDArray[np.floating],
    train_y: NDArray[np.integer],
    test_x: NDArray[np.floating],
    test_y: NDArray[np.integer],
) -> Utility:
    """Fit a multinomial logistic regression on training records [n, d], score it on real ones."""
    return score(fit(train_x, train_y)(test_x), test_y)
