"""Weights by the hub's own client, from a server here that answers as the hub does."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from safetensors.torch import save
from typer.testing import CliRunner

from benchmarks.scanner_digits import weights_file
from tests.worker.embedding.support import NETWORK, SIZE, arrays, made
from worker.agent.check import read_space
from worker.embedding import weights
from worker.embedding.backbone import DEFAULT
from worker.embedding.cli import embed_app


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server here that answers what the hub's client asks, with the packaged weights."""
    from huggingface_hub import constants

    tensors = weights.read(weights_file()).tensors
    body = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            asked.append(f"HEAD {self.path}")
            self._head()

        def do_GET(self) -> None:
            asked.append(f"GET {self.path}")
            self._head()
            self.wfile.write(body)

        def _head(self) -> None:
            there = NETWORK in self.path
            self.send_response(200 if there else 404)
            self.send_header("Content-Length", str(len(body) if there else 0))
            self.send_header("ETag", f'"{"e" * 64}"')
            self.send_header("X-Repo-Commit", "c" * 40)
            if not there:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield asked
    server.shutdown()
    server.server_close()
    thread.join()


def _from_hub(images: Path, out: Path, network: str = NETWORK) -> Any:
    options = ["--backbone", network, "--size", str(SIZE), "--device", "cpu"]
    return CliRunner().invoke(embed_app, [str(images), "--out", str(out), *options])


def test_weights_from_the_hub(images: Path, tmp_path: Path, hub: list[str]) -> None:
    """By the hub's own client; what it has kept is used without asking again."""
    result = _from_hub(images, tmp_path / "a.npz")
    assert result.exit_code == 0, result.output
    file = f"/timm/{NETWORK}/resolve/main/model.safetensors"
    assert (hub[0], hub[-1]) == (f"HEAD {file}", f"GET {file}")
    downloaded = read_space(tmp_path / "space.json")
    made(images, tmp_path / "b.npz", "--space-out", tmp_path / "other.json")
    by_file = read_space(tmp_path / "other.json")
    assert downloaded.weights_digest != by_file.weights_digest  # the same tensors, other bytes
    assert (arrays(tmp_path / "a.npz")["x"] == arrays(tmp_path / "b.npz")["x"]).all()
    hub.clear()
    assert _from_hub(images, tmp_path / "c.npz").exit_code == 0
    assert hub == []


def test_weights_that_the_hub_does_not_have(images: Path, tmp_path: Path, hub: list[str]) -> None:
    result = _from_hub(images, tmp_path / "a.npz", "tf_efficientnet_lite1.in1k")
    assert result.exit_code == 1, result.output
    assert "has no file model.safetensors" in result.output


def test_without_the_hub_it_says_how_to_bring_weights(
    images: Path, tmp_path: Path, hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's six tries
    result = CliRunner().invoke(embed_app, [str(images), "--out", str(tmp_path / "a.npz")])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert f"the hub cannot be reached for timm/{DEFAULT}/model.safetensors" in result.output
    assert "--weights FILE" in result.output
    assert not (tmp_path / "a.npz").exists()
