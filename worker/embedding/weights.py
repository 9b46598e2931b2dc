"""Weights of a frozen network: from a file or the Hugging Face hub, never by running a pickle.

The digest is that of the very bytes that were loaded: the file is read once.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from worker.errors import EmbeddingError

_OFFLINE = (
    "Connect this machine for the download, or bring the file: from the page of {repo} on the hub "
    "download {file} elsewhere, copy it here and give it with --weights FILE."
)
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")
_PREFIXES = ("_orig_mod.", "module.")


@dataclass(frozen=True, eq=False)
class Weights:
    """Named tensors as the file has them, and ``sha256:...`` of the file."""

    digest: str
    tensors: dict[str, Tensor] = field(repr=False)


def read(path: Path) -> Weights:
    """Of a ``.safetensors`` file, or one that ``torch.save`` wrote and that holds tensors only."""
    try:
        body = path.read_bytes()
    except OSError as error:
        raise EmbeddingError(
            f"cannot read the weights {path}: {error.strerror or error}.",
            field="weights",
            mend="Give the path of a .safetensors or .pth file.",
        ) from None
    return Weights(f"sha256:{hashlib.sha256(body).hexdigest()}", _tensors(path, body))


def _tensors(path: Path, body: bytes) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            content: Any = load_safetensors(body)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about unusual pickles, which are then refused
                content = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise EmbeddingError(
            f"{path} is not a file of weights, or holds Python objects beside them, which could "
            "run any program when loaded: it was not loaded.",
            field="weights",
            mend="Use a .safetensors file, or save the state dict alone.",
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise EmbeddingError(
            f"{path} holds no weights: {error}.",
            field="weights",
            mend="Copy the file again; compare its SHA-256 with that of its source.",
        ) from None
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise EmbeddingError(
            f"{path} does not hold named tensors.", field="weights", mend="Save the state dict."
        )
    return {_plain(name): value for name, value in content.items()}


def _plain(name: str) -> str:
    """Without what wrappers for parallel training and compilation put before names."""
    for prefix in _PREFIXES * 2:
        name = name.removeprefix(prefix)
    return name


def download(repository: str, filename: str) -> Path:
    """The file of the hub's repository ``owner/name`` or ``owner/name@revision``.

    The hub's client keeps it (``HF_HOME``), and what it has kept is taken without asking the hub.
    Only the request for the file ever leaves this machine.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo, _, revision = repository.partition("@")
    bring = _OFFLINE.format(repo=repo, file=filename)

    def found(*, kept: bool) -> Path:
        return Path(
            hf_hub_download(
                repo,
                filename,
                revision=revision or None,
                endpoint=os.environ.get("HF_ENDPOINT") or None,  # a mirror of the hub
                local_files_only=kept,
            )
        )

    try:
        return found(kept=True)
    except LocalEntryNotFoundError:
        pass  # the usual first time
    try:
        return found(kept=False)
    except LocalEntryNotFoundError as error:  # no connection, and nothing cached
        raise EmbeddingError(
            f"the hub cannot be reached for {repo}/{filename}: "
            f"{_first_line(error.__cause__ or error)}.",
            field="weights",
            mend=bring,
        ) from None
    except EntryNotFoundError:
        raise EmbeddingError(
            f"{repo} has no file {filename}.", field="weights", mend="Give a file with --weights."
        ) from None
    except OSError as error:  # what the client raises for refusals, too
        raise EmbeddingError(
            f"the hub did not give {repo}/{filename}: {_first_line(error)}.",
            field="weights",
            mend=bring,
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
