"""What a site's labels ask of the shared classifier beyond its training: shifts of its bias.

Rounds train one classifier for all sites. Where sites differ in how frequent classes are, or in
how they look, each one's own mean gradient of the bias, E[p_y - 1(label = y)], stays away from 0:
it says by how much the classifier gives class y too much at that site. A Newton step with the
diagonal of the Hessian, averaged over classes, turns it into a shift of the bias.

Shifts are made of noised releases that clients posted anyway (``core.federation.label_shift``):
post-processing, no privacy cost. Compare the re-estimated priors of Saerens et al. 2002.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from core.models.classifier import Linear
from core.wire import tensors

Vector = NDArray[np.float64]

LABEL_SHIFT = "label_shift"  # in the weights file: [M, C] too much of each class, per client
_LEAST_CURVATURE = 1e-3  # of a classifier that doubts nothing: a step must stay finite


def read_label_shift(
    content: Mapping[str, NDArray[np.generic]], clients: int, classes: int
) -> Vector:
    """[M, C] of a weights file's tensors; zeros for clients that joined after training.

    Raises ``TensorFileError`` unless they are finite and of that shape, or of fewer clients.
    """
    found = content.get(LABEL_SHIFT)
    if found is None:
        return np.zeros((clients, classes))
    values = np.asarray(found, np.float64)
    fits = values.ndim == 2 and values.shape[0] <= clients and values.shape[1] == classes
    if not fits or not np.isfinite(values).all():
        raise tensors.TensorFileError(
            f"{LABEL_SHIFT} of these weights is not finite or not {(clients, classes)}"
        )
    return np.concatenate([values, np.zeros((clients - len(values), classes))])


def curvature(classifier: Linear, seen: Vector) -> float:
    """Mean over rows [n, d] and classes of p (1 - p): the bias' second derivative."""
    logits = seen @ classifier.weight.T + classifier.bias
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs = odds / odds.sum(axis=1, keepdims=True)
    return max(float((probs * (1.0 - probs)).mean()), _LEAST_CURVATURE)


def shifted(classifier: Linear, too_much: Vector, curved: float) -> Linear:
    """The classifier after one Newton step of its bias against ``too_much`` [C]."""
    return Linear(classifier.weight, classifier.bias - too_much / curved)
