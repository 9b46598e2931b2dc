"""Ed25519 signatures (RFC 8032) of receipts. A key has an id; old keys go on verifying."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, overload

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError

from core.errors import ReceiptInvalid
from core.federation.values import Frozen
from core.receipts.receipt import Receipt, Signable, canonical

_ID_DIGITS = 16

S = TypeVar("S", bound=Signable)


class Signed(Frozen):
    """A receipt as it is handed out, under its id. ``signature``: base64 of 64 bytes."""

    id: str = Field(max_length=100)
    receipt: dict[str, object]
    key_id: str = Field(max_length=100)
    algorithm: Literal["ed25519"] = "ed25519"
    signature: str = Field(max_length=200)


@dataclass(frozen=True)
class SigningKey:
    """The private half. ``seed``: 32 secret bytes."""

    seed: bytes

    @classmethod
    def new(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def public(self) -> bytes:
        """32 bytes that anybody may have."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()

    def sign(self, receipt: Signable) -> Signed:
        key = Ed25519PrivateKey.from_private_bytes(self.seed)
        content = receipt.model_dump(mode="json")
        signature = key.sign(receipt.context + canonical(content))
        return Signed(
            id=receipt.id,
            receipt=content,
            key_id=key_id(self.public),
            signature=base64.b64encode(signature).decode(),
        )


def key_id(public: bytes) -> str:
    """The name of a public key: the beginning of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:_ID_DIGITS]


@overload
def verified(signed: Signed, keys: Mapping[str, bytes]) -> Receipt: ...


@overload
def verified(signed: Signed, keys: Mapping[str, bytes], kind: type[S]) -> S: ...


def verified(signed: Signed, keys: Mapping[str, bytes], kind: type[Signable] = Receipt) -> Signable:
    """The receipt of this ``kind``, if one of these keys (id -> 32 public bytes) signed it as it
    is; raises ``ReceiptInvalid``, which says what is wrong.
    """
    public = keys.get(signed.key_id)
    if public is None:
        raise ReceiptInvalid(
            f"the key {signed.key_id!r} is not known here",
            field="key_id",
            mend="Fetch the coordinator's public keys again.",
        )
    if key_id(public) != signed.key_id:
        raise ReceiptInvalid(f"the key under {signed.key_id!r} has another id", field="key_id")
    try:
        signature = base64.b64decode(signed.signature, validate=True)
        content = kind.context + canonical(signed.receipt)
        Ed25519PublicKey.from_public_bytes(public).verify(signature, content)
    except (binascii.Error, ValueError, InvalidSignature) as error:
        raise ReceiptInvalid(
            "the signature does not belong to this receipt: one of them was changed",
            field="signature",
        ) from error
    try:
        receipt = kind.model_validate(signed.receipt)
    except ValidationError as error:
        raise ReceiptInvalid(
            "a receipt of another version: this program is too old for it", field="receipt"
        ) from error
    if receipt.id != signed.id:
        raise ReceiptInvalid("the id is another receipt's", field="id")
    return receipt
