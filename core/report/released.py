"""What the sketch round released of the data themselves: class shares and sizes, with errors."""

from __future__ import annotations

import math
from collections.abc import Collection

from core.federation.plan import RunSpec
from core.models.evidence import TRUSTED_SDS
from core.models.frame import Frame
from core.privacy.mechanism import sensitivity
from core.report.report import Released, Sized
from core.report.values import Estimate


def count_error(spec: RunSpec, multiplier: float) -> float:
    """Standard deviation of the noise in one released class count, in units."""
    return multiplier * sensitivity(spec, 0) / spec.plan.sketch.count_weight


def released(
    spec: RunSpec,
    frame: Frame,
    founding: int,
    withdrawn: Collection[str] = (),
    noise_gain: float = 1.0,
) -> Released:
    """Post-processing of the released counts. ``founding``: how many of the frame's clients, from
    the first on, posted the sketch of round 0; the others joined later, with other noise, and
    moved no class share. The files of a model say no size of a client that has ``withdrawn``.

    ``noise_gain``: of a secure sum, the noise in it in terms of what the sketch's event promises.
    The errors are of the noise alone. A share's is that of its count over the sum of the founding
    clients' units: the sum has noise too, but all classes share that.
    """
    classes = len(spec.space.classes)
    founders = count_error(spec, spec.noise.sketch_multiplier) * noise_gain
    later = count_error(spec, spec.noise.join_multiplier)
    units = float(frame.sizes[:founding].sum())
    shares = frame.class_probs / frame.class_probs.sum()
    share_error = founders * math.sqrt(max(1, founding)) / units
    return Released(
        classes=tuple(Estimate(value=float(share), se=share_error) for share in shares),
        sizes=tuple(
            Sized(
                client=client,
                units=Estimate(
                    value=float(size),
                    se=(founders if place < founding else later) * math.sqrt(classes),
                ),
            )
            for place, (client, size) in enumerate(zip(frame.clients, frame.sizes, strict=True))
            if client not in withdrawn
        ),
        floor=max(1.0, TRUSTED_SDS * founders * math.sqrt(classes)),
    )
