"""The embedding space of what was made: written as ``space.json``, or compared with a given one."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import ValidationError

from core.errors import FileNotWritten
from core.federation.plan import EmbeddingSpace
from core.files import whole_file
from worker.embedding import pictures
from worker.embedding.backbone import Backbone
from worker.errors import EmbeddingError

PREFIX = "timm "  # of the contract's ``backbone``; the rest is a name that timm knows


def default_name(backbone: Backbone) -> str:
    """A name that the registry of spaces takes: the network and the size of its images."""
    plain = re.sub(r"[^a-z0-9._-]", "-", backbone.name.lower())
    return f"{plain[:57].lstrip('._-') or 'space'}-{backbone.size}"


def made(backbone: Backbone, white: int, name: str, classes: tuple[str, ...]) -> EmbeddingSpace:
    """The contract of embeddings that ``backbone`` makes of images."""
    try:
        return EmbeddingSpace(
            name=name,
            backbone=PREFIX + backbone.name,
            weights_digest=backbone.weights_digest,
            preprocessing=f"{pictures.in_words(white)}; {backbone.preprocessing}",
            dim=backbone.dim,
            classes=classes,
        )
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = str(fault["loc"][0]) if fault["loc"] else "classes"
        raise EmbeddingError(
            f"the space cannot be described: {field}: {fault['msg']}.",
            field=field,
            mend="Give --name (small letters, digits, . _ -) and two or more --classes.",
        ) from None


def require_same(given: EmbeddingSpace, ours: EmbeddingSpace) -> None:
    """Raise if what this machine makes would not be of the space ``given``."""
    differing = [
        f"{name} is {getattr(ours, name)!r} here and {getattr(given, name)!r} there"
        for name in ("backbone", "weights_digest", "preprocessing", "dim")
        if getattr(ours, name) != getattr(given, name)
    ]
    if differing:
        raise EmbeddingError(
            f"embeddings made here are not of the space {given.name!r}: {'; '.join(differing)}.",
            field="space",
            mend="Use the weights, --size and --white of the site that wrote the space.",
        )


def backbone_of(given: EmbeddingSpace) -> str:
    """The name by which timm knows the network of a space that this command wrote."""
    if not given.backbone.startswith(PREFIX):
        raise EmbeddingError(
            f"the space {given.name!r} is of {given.backbone!r}, which this command does not make.",
            field="space",
            mend="Embed with the program with which the space was made.",
        )
    return given.backbone.removeprefix(PREFIX)


def require_writable(path: Path, space: EmbeddingSpace, *, force: bool) -> None:
    """Raise if another space is there already: others may rely on a contract as it is."""
    if path.exists() and not force and _space_in(path) != space:
        raise EmbeddingError(
            f"{path} exists already, and is another space than {space.name!r} as made here.",
            field="space-out",
            mend="Embed in that space with --space, or write another with --space-out; "
            "--force replaces it.",
        )


def _space_in(path: Path) -> EmbeddingSpace | None:
    try:
        return EmbeddingSpace.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def write(space: EmbeddingSpace, path: Path) -> None:
    """``POST /v1/spaces`` and ``agent check --space`` take the file as it is."""
    text = json.dumps(space.model_dump(mode="json"), indent=1, ensure_ascii=False)
    try:
        with whole_file(path) as file:
            file.write(f"{text}\n".encode())
    except FileNotWritten as error:
        raise EmbeddingError(error.message, field="space-out", mend=error.mend) from None
