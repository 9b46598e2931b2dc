"""What a plan trains: the hypernetwork CVAE, the sketch, the server's optimiser, labels of rows."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from core.federation.values import Frozen
from core.models.architecture import Activation, Conditioning, Form, Prior


class ModelPlan(Frozen):
    """Sizes of the hypernetwork CVAE (see docs/model.md). All public."""

    form: Form = Field(
        default="film",
        description="What is generated for a client: film, scale and shift of hidden units; "
        "lowrank, a low-rank change of every layer; full, every weight of the decoder.",
    )
    code_dim: int = Field(default=16, ge=1, le=1_024)
    codes: Literal["sketch", "trained"] = Field(
        default="sketch",
        description="sketch: a client's code is a fixed map of its released sketch. trained: the "
        "hypernetwork sees that code plus an offset, which is trained like everything else.",
    )
    trunk_width: int = Field(default=8, ge=1, le=4_096)
    trunk_layers: int = Field(default=1, ge=1, le=8)
    latent_dim: int = Field(default=8, ge=1, le=1_024)
    hidden: int = Field(default=32, ge=1, le=8_192, description="Width of the decoder's layers.")
    hidden_layers: int = Field(default=1, ge=1, le=8)
    encoder: Literal["shared", "local"] = Field(
        default="shared",
        description="local: each client keeps an encoder of its own, made of its noised gradient "
        "sums, which it does not post.",
    )
    encoder_hidden: int = Field(default=32, ge=1, le=8_192)
    encoder_layers: int = Field(default=1, ge=1, le=8)
    lowrank: int = Field(
        default=4, ge=1, le=1_024, description="Rank of a layer's change in the form lowrank."
    )
    activation: Activation = "tanh"
    conditioning: Conditioning = Field(
        default="concat",
        description="How encoder and decoder are told the class: one-hot, or a trained vector.",
    )
    conditioning_dim: int = Field(
        default=8, ge=1, le=1_024, description="Width of that trained vector."
    )
    classifier: Literal["linear", "none"] = Field(
        default="linear",
        description="An auxiliary classifier of whole embeddings, trained in the same rounds; it "
        "guides the labels of samples.",
    )
    prior: Prior = Field(
        default="class",
        description="Of latent vectors: class, trained for each class and shifted by the code; "
        "standard, N(0, I) for every class and code.",
    )
    basis_rank: int = Field(
        default=32, ge=1, le=8_192, description="Residuals live in this many directions."
    )
    beta: float = Field(default=1.0, gt=0, le=1e6)
    code_dropout: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Chance that a unit is trained under the neutral code.",
    )


class SketchPlan(Frozen):
    """Block weights of step 1, whose sensitivity is the root of the sum of their squares, and the
    radius R of step 2, whose blocks are in units of R and R^2 and have sensitivity 1 together.
    """

    count_weight: float = Field(default=0.3, ge=1e-3, le=1e3)
    mean_weight: float = Field(default=1.0, ge=1e-3, le=1e3)
    residual_radius: float = Field(
        default=0.7, gt=0, le=2, description="Residuals of directions are clipped to this length."
    )
    projected_weight: float = Field(
        default=0.0,
        ge=0,
        le=1e3,
        description="Second moment in public random directions; for runs whose second step has "
        "no moments. 0: not released.",
    )
    projected_rank: int = Field(default=32, ge=1, le=4_096, description="How many directions.")
    projected_radius: float = Field(
        default=1.0, gt=0, le=1, description="Projected directions are clipped to this length."
    )
    feature_weight: float = Field(
        default=0.0,
        ge=0,
        le=1e3,
        description="Class sums of random Fourier features: MMD targets. 0: not released.",
    )
    feature_pairs: int = Field(
        default=64, ge=1, le=65_536, description="Pairs of cosine and sine, a feature vector."
    )

    @property
    def bound(self) -> float:
        """S, the norm of one record's vector at most."""
        blocks = (
            self.count_weight, self.mean_weight, self.projected_weight, self.feature_weight,
        )  # fmt: skip
        return math.hypot(*blocks)


class OptimiserPlan(Frozen):
    """The server's optimiser over the noised sums."""

    kind: Literal["adam", "momentum"] = "adam"
    learning_rate: float = Field(default=0.01, gt=0, le=1e3)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    ema_decay: float = Field(default=0.9, ge=0, lt=1)
    classifier_momentum: float = Field(default=0.8, ge=0, lt=1)
    classifier_noise: float = Field(
        default=0.5,
        gt=0,
        le=10,
        description="Sets the classifier's step size: how far noise may move it over the whole "
        "run, in lengths of the classifier that the sketch gives.",
    )


class GuidancePlan(Frozen):
    """What samplers do with the auxiliary classifier: post-processing, hence free."""

    labels: Literal["relabel", "none"] = Field(
        default="relabel",
        description="relabel: a row's label is what the classifier says of it. none: the class "
        "from whose part of the generator it was drawn.",
    )
    widen: float = Field(
        default=2.0,
        ge=0,
        le=100,
        description="How far proposals spread in the classifier's directions, in units of the "
        "spread of the class means there: wide enough to cross boundaries.",
    )
