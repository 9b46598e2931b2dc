"""A model card: what a published generator is, what it cost whom, what it is for. Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import ReceiptInvalid
from core.federation.plan import RunSpec
from core.receipts.checking import PublicKeys
from core.receipts.opening import ModelFacts
from core.receipts.receipt import Model, ModelReceipt, Spent
from core.receipts.signing import Signed, verified
from core.synthesis.domains import resolved
from core.synthesis.request import SynthesisRequest

_FEW_CLASSES = 40
_MEANT_FOR = """\
* Labelled synthetic embeddings of this embedding space: to train and to compare classifiers, to
  develop and test software, to plan studies, without the sites' records.
* Rows of one site, or of a mixture of sites, to see how a classifier does on other sites' data."""
_LIMITS = """\
* Rows are embeddings of the network named above. They mean nothing to another network, and nothing
  here makes images or texts of them.
* They show what populations look like on average. Rare groups and small sites are where noise wins;
  no decision about a person may rest on a row.
* That a site took part, and when, is not hidden."""
_WHAT = (
    "A generator of labelled embeddings, trained by FedHypeVAE over several sites that kept their "
    "records."
)
_PROMISE = (
    "Only noised sums left a site for this model, all of them together (ε, δ)-differentially "
    "private, ε computed from the events that were executed. Rows cost no more, however many."
)
_SECURE_PROMISE = (
    "The coordinator saw only sums over the founding sites, and the noise is in the sums: their ε "
    "hold against the coordinator and up to {collude} of the clients, as long as the others kept "
    "to the protocol. The receipt says what they are against everybody else. A site that joined "
    "later released a sketch of its own, whose ε needs no such premise. ε is computed from the "
    "events that were executed. Rows cost no more, however many."
)
_NO_PROMISE = "No guarantee: see above. Treat this file and all rows from it as personal data."
_LEFT_OUT = (
    "withdrawn after training. Codes and what else was theirs alone are not in this file, and it "
    "makes no rows under them. The shared weights, the class means and the codes of the others "
    "were made with what they had released, noise and all; that cannot be taken out."
)
_TRAINED_LABELS = (
    "A classifier that the same private rounds trained decides which rows carry which label, since "
    'that makes them most useful for training classifiers; `guidance` "none" leaves it out.'
)


@dataclass(frozen=True)
class Card:
    """What a file says of itself. ``signed``: its receipt as it came; whether the signature is
    genuine only the coordinator's keys can tell (``require_signature``).
    """

    receipt: ModelReceipt
    signed: Signed
    markdown: str

    def require_signature(self, keys: PublicKeys) -> None:
        """Raises ``ReceiptInvalid`` unless one of these keys, not revoked, has signed."""
        if any(key.id == self.signed.key_id and key.revoked_at for key in keys.items):
            raise ReceiptInvalid(f"the key {self.signed.key_id} was revoked", field="key_id")
        verified(self.signed, keys.valid, ModelReceipt)

    def resolved(self, request: SynthesisRequest) -> SynthesisRequest:
        """With clients in place of domains. Raises ``ClientWithdrawn``."""
        return resolved(request, self.receipt.domains, self.receipt.withdrawn)

    @property
    def facts(self) -> ModelFacts:
        """What receipts of rows from this model say."""
        receipt = self.receipt
        return ModelFacts(
            model=receipt.model,
            per_client=receipt.per_client,
            relation=receipt.relation,
            noise_mode=receipt.noise_mode,
            withdrawn=receipt.withdrawn,
            views=receipt.views,
        )


def described(
    spec: RunSpec,
    model: Model,
    per_client: Sequence[Spent],
    *,
    relation: str,
    noise_mode: str,
    caveat: str,
    withdrawn: Sequence[str],
    clients: Sequence[str],
    guided: bool,
    licence: str,
) -> str:
    """The card's text. ``clients``: who has a code in the file. ``caveat``: why there is no
    guarantee, or empty.
    """
    parts = [
        f"# {_line(model.run)}, round {model.round}",
        *([f"**NOT PRIVATE**: {_line(caveat)}."] if caveat else []),
        _WHAT,
        _table(_about(spec, model, clients, licence)),
        "## Privacy",
        _privacy(spec, per_client, relation, noise_mode, guaranteed=not caveat),
        *_withdrawn(withdrawn),
        "## What it is for",
        _MEANT_FOR,
        *([_TRAINED_LABELS] if guided else []),
        "## What it is not for",
        _LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def _about(
    spec: RunSpec, model: Model, clients: Sequence[str], licence: str
) -> list[tuple[str, str]]:
    space, classes = spec.space, spec.space.classes
    named = ", ".join(classes[:_FEW_CLASSES])
    if len(classes) > _FEW_CLASSES:
        named += f" and {len(classes) - _FEW_CLASSES} more"
    return [
        ("run", f"{model.run} ({model.run_id})"),
        ("licence", licence),
        ("embedding space", space.name),
        ("frozen network", f"{space.backbone}, weights {space.weights_digest}"),
        ("preprocessing", space.preprocessing),
        ("dimensions", f"{space.dim}; every row has length sqrt({space.dim})"),
        ("classes", f"{len(classes)}: {named}"),
        ("clients with a code", ", ".join(clients) or "none: only neutral rows"),
        (
            "hypernetwork",
            f"form {spec.plan.model.form}, {spec.plan.privacy.rounds} training rounds",
        ),
        ("specification", model.plan_digest),
        ("published frame", model.frame_digest),
        ("published weights", model.weights_digest),
    ]


def _privacy(
    spec: RunSpec, per_client: Sequence[Spent], relation: str, noise_mode: str, *, guaranteed: bool
) -> str:
    if not guaranteed:
        return _NO_PROMISE
    rows = [(one.client, f"{one.epsilon:.4g}", f"{one.delta:.3g}", one.unit) for one in per_client]
    terms = (
        f"Neighbouring data sets: {relation}, of one site. A person in the data of k sites pays up "
        f"to k-fold. Assumed: no client has more than {spec.plan.privacy.n_max:,} units. Noise: "
        f"Gaussian, from a {noise_mode} source."
    )
    promise = _PROMISE
    if spec.plan.aggregation == "secure":
        promise = _SECURE_PROMISE.format(collude=spec.plan.secure.collude)
    return "\n\n".join([promise, _table(rows, ("client", "ε", "δ", "unit")), terms])


def _withdrawn(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    who = ", ".join(_line(name) for name in names)
    return ["## Withdrawn", f"{who}: {_LEFT_OUT}"]


def _table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = ("what", "which")) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_line(cell) for cell in line) + " |" for line in lines)


def _line(text: str) -> str:
    """Text from outside stays one cell of one line."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return printable.replace("\\", "\\\\").replace("|", "\\|")
