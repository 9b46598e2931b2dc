"""The receipt of a request, before its rows are made."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import numpy as np
from threadpoolctl import threadpool_info

from core.federation.plan import NO_GUARANTEE, RunSpec
from core.privacy.premise import View
from core.receipts.receipt import (
    NOT_PRIVATE,
    Asked,
    CodeUsed,
    MadeWith,
    Model,
    Receipt,
    Spent,
)
from core.synthesis.codes import Code
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator

SEEDED = "training noise came from a seed: whoever knows it can take the noise off"


@dataclass(frozen=True)
class ModelFacts:
    """What a published model has cost whom; see ``Receipt``."""

    model: Model
    per_client: tuple[Spent, ...]
    relation: str
    noise_mode: str
    withdrawn: tuple[str, ...] = ()
    views: tuple[View, ...] = ()


def opening(
    facts: ModelFacts,
    generator: Generator,
    request: SynthesisRequest,
    seed: int,
    codes: tuple[Code, ...],
    machine: MadeWith | None = None,
) -> Receipt:
    """The receipt without ``content``. Rows of a model without a guarantee are stamped.
    ``machine``: where rows are made, if not here.
    """
    caveat = caveat_of(generator.spec, facts.noise_mode, generator.caveat)
    return Receipt(
        model=facts.model,
        asked=Asked(
            mixture=request.mixture,
            mode=request.mode,
            n=request.n,
            labels=request.labels,
            class_counts=request.class_counts,
            temperature=request.temperature,
            guidance=request.guidance,
            seed=seed,
        ),
        n=request.size,
        codes=tuple(
            CodeUsed(domain=code.domain, share=code.share, code_id=code.id) for code in codes
        ),
        labels_by="trained classifier" if generator.guides(request) else "generator",
        per_client=facts.per_client,
        relation=facts.relation,
        noise_mode=facts.noise_mode,
        label=NOT_PRIVATE if caveat else "",
        caveat=caveat,
        withdrawn=facts.withdrawn,
        views=facts.views,
        made_with=machine or made_with(),
    )


def caveat_of(spec: RunSpec, noise_mode: str, weights_caveat: str = "") -> str:
    """Why a model is not private; empty if nothing speaks against its epsilon."""
    if spec.plan.privacy.caveat or weights_caveat:
        return spec.plan.privacy.caveat or weights_caveat or NO_GUARANTEE
    return "" if noise_mode == "csprng" else SEEDED


@cache
def made_with() -> MadeWith:
    """This process: versions, and the vector instructions that its products use."""
    kernels = {
        info["architecture"] for info in threadpool_info() if info["internal_api"] == "openblas"
    }
    simd = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    return MadeWith(
        fedhypevae=version("fedhypevae"),
        numpy=np.__version__,
        instruction_set=" ".join([platform.machine(), *sorted(kernels), *simd[-1:]]),
    )
