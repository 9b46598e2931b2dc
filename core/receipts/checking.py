"""Is a receipt genuine, and are these the rows that it names? Needs no network and no secret."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from core.errors import FileUnreadable, ReceiptInvalid
from core.receipts.content import content_of
from core.receipts.reading import RowsFile
from core.receipts.receipt import Receipt
from core.receipts.signing import Signed, verified

Check = tuple[bool | None, str]  # whether it holds (None: could not be told), in words


class PublicKey(BaseModel):
    """One of those that ``GET /v1/receipt-keys`` lists."""

    id: str
    public: str
    revoked_at: str | None = None


class PublicKeys(BaseModel):
    items: list[PublicKey]

    @property
    def valid(self) -> dict[str, bytes]:
        """Id -> 32 bytes, of those that were not revoked."""
        return {key.id: bytes.fromhex(key.public) for key in self.items if key.revoked_at is None}


def read_keys(path: Path) -> PublicKeys:
    """Raises ``FileUnreadable``."""
    try:
        return PublicKeys.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise FileUnreadable(
            f"{path} holds no public keys: {str(error).partition(chr(10))[0]}",
            field="keys",
            mend="Save the answer of GET /v1/receipt-keys, or of 'fedhypevae keys export'.",
        ) from error


@dataclass
class Findings:
    """``checks``: what was looked at, and what was found."""

    receipt: Receipt
    checks: dict[str, Check] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """All that there is to check was checked, and holds."""
        return all(holds is True for holds, _ in self.checks.values())


def signed_of(raw: Mapping[str, Any] | None) -> Signed:
    """Raises ``ReceiptInvalid`` for what is no signed receipt."""
    if not raw:
        raise ReceiptInvalid(
            "the file holds no receipt",
            field="file",
            mend="Fetch it from /v1/receipts/{id} (header X-FHV-Receipt) and give --receipt.",
        )
    if raw.get("algorithm") == "none":
        raise ReceiptInvalid(
            "nobody has signed this receipt: the rows were made offline",
            field="file",
            mend="Ask the coordinator for its own (GET /v1/receipts/{id}) and give --receipt.",
        )
    try:
        return Signed.model_validate(raw)
    except ValidationError as error:
        raise ReceiptInvalid("this is no signed receipt", field="file") from error


def check(rows: RowsFile, signed: Signed, keys: PublicKeys | None) -> Findings:
    """Signature and, of a file that holds rows, their content. Raises ``ReceiptInvalid`` for a
    receipt that cannot be read at all.
    """
    try:
        receipt = Receipt.model_validate(signed.receipt)
    except ValidationError as error:
        raise ReceiptInvalid("a receipt of another version of this program") from error
    findings = Findings(receipt)
    findings.checks["signature"] = _signature(signed, keys)
    if rows.dtype:
        findings.checks["rows"] = _rows(rows, receipt)
    return findings


def _signature(signed: Signed, keys: PublicKeys | None) -> Check:
    if keys is None:
        return None, "not checked: no public keys were given (--keys)"
    revoked = {key.id for key in keys.items if key.revoked_at is not None}
    if signed.key_id in revoked:
        return False, f"the key {signed.key_id} was revoked"
    try:
        verified(signed, keys.valid)
    except ReceiptInvalid as error:
        return False, error.message
    return True, f"by key {signed.key_id}"


def _rows(rows: RowsFile, receipt: Receipt) -> Check:
    if rows.dtype == "float16":
        return None, "float16 keeps less of the rows than was hashed: compare with --model"
    if receipt.content is None:
        return None, "the receipt inside was made before the rows: give the closed one (--receipt)"
    found = content_of(rows.blocks())
    if found == receipt.content:
        return True, f"{found.n:,} rows, {found.digest}"
    if found.n != receipt.content.n:
        return False, f"{found.n:,} rows, not {receipt.content.n:,}"
    return False, f"the file holds other rows ({found.digest}) than {receipt.content.digest}"


def summary(findings: Findings) -> dict[str, Any]:
    """The findings as JSON values."""
    return {
        "good": findings.good,
        "checks": {
            name: {"holds": holds, "why": why} for name, (holds, why) in findings.checks.items()
        },
        "receipt": json.loads(findings.receipt.model_dump_json()),
    }
