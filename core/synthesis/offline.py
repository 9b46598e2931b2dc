"""Rows from an exported generator: no network, no database; the same rows as the coordinator's.

A receipt that is made here is the coordinator's for the same request, with the same id where
program, numpy and instruction set are the same, but nobody has signed it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import BinaryIO

from core.receipts.content import Content
from core.receipts.opening import opening
from core.receipts.receipt import Receipt
from core.synthesis.card import Card
from core.synthesis.codes import Code
from core.synthesis.formats import FORMATS, Document
from core.synthesis.formats.document import Receipt as Written
from core.synthesis.request import SynthesisRequest
from core.synthesis.sampler import Generator

Progress = Callable[[int], None]


def document(generator: Generator, card: Card, request: SynthesisRequest, seed: int) -> Document:
    """The rows of a request with their receipt. Raises as ``Generator.rows`` does."""
    request = card.resolved(request)
    receipt: Receipt | None = None

    def opened(codes: tuple[Code, ...]) -> Written:
        nonlocal receipt
        receipt = opening(card.facts, generator, request, seed, codes)
        return unsigned(receipt)

    def closed(content: Content) -> Written:
        if receipt is None:
            raise RuntimeError("a receipt is opened before it is closed")
        return unsigned(receipt.model_copy(update={"content": content}))

    return generator.document(request, seed, opened, closed)


def unsigned(receipt: Receipt) -> dict[str, object]:
    """In the place of a signed receipt (``core.receipts.signing.Signed``); it is not one."""
    return {
        "id": receipt.id,
        "receipt": receipt.model_dump(mode="json"),
        "key_id": "",
        "algorithm": "none",
        "signature": "",
    }


def write(made: Document, kind: str, file: BinaryIO, progress: Progress | None = None) -> None:
    """All bytes of a document, in constant memory. ``progress`` is told how many rows were made."""
    file.writelines(FORMATS[kind].pieces(replace(made, watch=progress)))
