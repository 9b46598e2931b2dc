"""``fedhypevae embed`` end to end: real images and weights, and the agent that reads the rows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.scanner_digits import load_images
from core import data
from core.federation.plan import digest_of
from tests.worker.embedding.support import (
    FAST,
    NETWORK,
    SIZE,
    arrays,
    call,
    digits,
    made,
    write_medmnist,
)
from worker.agent.check import read_space
from worker.cli import agent_app
from worker.embedding.backbone import DEFAULT
from worker.embedding.cli import _DEFAULT, embed_app

ROOT = Path(__file__).resolve().parents[3]


def refused(*arguments: Any, says: str, code: int = 1) -> None:
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert says in " ".join(result.output.split())


def check(folder: Path, unit: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    (folder / "site.toml").write_text(
        '[site]\nstate_dir = "state"\n[[client]]\nname = "site-a"\ndata = "site-a.npz"\n'
        f'unit = "{unit}"\npopulation = "a/all"\nmax_epsilon = 8.0\ndelta = 1e-5\n'
        "min_noise_multiplier = 0.3\n"
    )
    monkeypatch.setenv("FHV_SITE_CONFIG", str(folder / "site.toml"))
    return CliRunner().invoke(agent_app, ["check", "--space", str(folder / "space.json")])


# --- what comes out ---


def test_the_agent_accepts_what_was_made(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = made(images, tmp_path / "site-a.npz", "--name", "digits")
    assert (answer["rows"], answer["dim"], answer["unit"]) == (20, 1280, "record")
    assert answer["classes"] == {f"class-{k}": 5 for k in range(4)}
    result = check(tmp_path, "record", monkeypatch)
    assert result.exit_code == 0, result.output
    assert "20 records of 20 units (record), 1280 wide" in result.output
    space = read_space(tmp_path / "space.json")
    assert answer["space_digest"] == digest_of(space)
    assert (space.name, space.backbone) == ("digits", f"timm {NETWORK}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "images", "site-a.npz", "site.toml", "space.json", "state",
    ]  # fmt: skip


def test_patients_from_a_table(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(path.relative_to(images).as_posix() for path in images.glob("*/*.png"))
    rows = [f"{name},P{number % 6}" for number, name in enumerate(names)]
    (tmp_path / "units.csv").write_text("file,person\n" + "\n".join(rows))
    made(images, tmp_path / "site-a.npz", "--units", tmp_path / "units.csv",
         "--unit-column", "person")  # fmt: skip
    result = check(tmp_path, "patient", monkeypatch)
    assert result.exit_code == 0, result.output
    assert "20 records of 6 units (patient)" in result.output
    expected = [f"P{number % 6}" for number in range(20)]
    assert arrays(tmp_path / "site-a.npz")["unit"].tolist() == expected


def test_a_medmnist_file_gives_the_same_rows_as_its_images_in_folders(tmp_path: Path) -> None:
    from PIL import Image

    write_medmnist(tmp_path / "m.npz")
    pixels, labels = digits()
    for number in range(30):
        path = tmp_path / "images" / str(labels[number]) / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(path)
    made(tmp_path / "m.npz", tmp_path / "a.npz")
    made(tmp_path / "images", tmp_path / "b.npz", "--space", tmp_path / "space.json")
    a, b = arrays(tmp_path / "a.npz"), arrays(tmp_path / "b.npz")
    assert a["y"].tolist() == b["y"].tolist() == [str(label) for label in labels[:30]]
    assert (a["x"] == b["x"]).all()
    space = read_space(tmp_path / "space.json")
    assert len(data.load(tmp_path / "a.npz", space, unit="record")) == 30


def test_rows_are_of_their_images(images: Path, tmp_path: Path) -> None:
    """Each image alone gives its row; different images give different rows."""
    made(images, tmp_path / "a.npz", "--batch", "7")
    x = arrays(tmp_path / "a.npz")["x"]
    assert x.dtype == np.float32
    assert len(np.unique(x.round(4), axis=0)) == 20
    made(images, tmp_path / "b.npz", "--batch", "1")
    np.testing.assert_allclose(arrays(tmp_path / "b.npz")["x"], x, rtol=0, atol=1e-4)


def test_same_bytes_for_the_same_images(images: Path, tmp_path: Path) -> None:
    """Whatever the clock says, and wherever the images lie."""
    made(images, tmp_path / "a.npz")
    shutil.copytree(images, tmp_path / "moved")
    made(tmp_path / "moved", tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {each.date_time for each in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_nothing_is_sent(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def talks(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", talks)
    monkeypatch.setattr(socket.socket, "sendto", talks)
    made(images, tmp_path / "a.npz")


# --- the contract ---


def test_a_second_site_keeps_to_the_space_of_the_first(images: Path, tmp_path: Path) -> None:
    made(images, tmp_path / "a.npz", "--classes", "class-9,class-0,class-1,class-2,class-3")
    space = tmp_path / "space.json"
    before = space.read_bytes()
    shutil.rmtree(images / "class-2")
    answer = made(images, tmp_path / "b.npz", "--space", space)
    assert answer["rows"] == 15
    assert space.read_bytes() == before
    assert read_space(space).classes[0] == "class-9"
    made(images, tmp_path / "c.npz", "--classes", "class-9,class-0,class-1,class-2,class-3")

    refused(images, tmp_path / "d.npz", "--space", space, "--size", SIZE + 1, says="preprocessing")
    refused(images, tmp_path / "d.npz", "--space", space, "--white", 4095, says="preprocessing")
    refused(images, tmp_path / "d.npz", says="is another space than")  # of three classes
    given = json.loads(before)
    space.write_text(json.dumps({**given, "weights_digest": f"sha256:{'0' * 64}"}))
    refused(images, tmp_path / "d.npz", "--space", space, says="weights_digest is")
    space.write_text(json.dumps({**given, "classes": ["class-0", "x"]}))
    refused(images, tmp_path / "d.npz", "--space", space, says="no class: class-1, class-3")
    space.write_text("{")
    refused(images, tmp_path / "d.npz", "--space", space, says="cannot read the space")
    assert not (tmp_path / "d.npz").exists()


def test_the_network_of_a_given_space_is_used(images: Path, tmp_path: Path) -> None:
    made(images, tmp_path / "a.npz")
    space = tmp_path / "space.json"
    with_weights = [*FAST[2:], "--batch", "4"]
    command = [str(images), "--out", str(tmp_path / "b.npz"), "--space", str(space), *with_weights]
    done = CliRunner().invoke(embed_app, command)
    assert done.exit_code == 0, done.output
    assert "20 embeddings, 1280 wide (class-0 5, class-1 5" in done.stdout
    assert "20/20" in done.stderr
    assert "images/s" in done.stderr
    given = json.loads(space.read_text())
    space.write_text(json.dumps({**given, "backbone": "a network of ours"}))
    result = CliRunner().invoke(embed_app, [*command, "--force"])
    assert result.exit_code == 1
    assert "which this command does not make" in result.output


def test_a_space_needs_two_classes_and_a_proper_name(images: Path, tmp_path: Path) -> None:
    refused(images, tmp_path / "a.npz", "--name", "No Name", says="name: String should match")
    for each in ("class-1", "class-2", "class-3"):
        shutil.rmtree(images / each)
    refused(images, tmp_path / "a.npz", says="two or more --classes")
    classes = "class-0,class-0"
    refused(images, tmp_path / "a.npz", "--classes", classes, says="each name may appear once")


def test_the_default_network_is_named_once() -> None:
    assert _DEFAULT == DEFAULT


# --- broken images ---


def test_broken_images_are_all_named_and_end_the_work(images: Path, tmp_path: Path) -> None:
    for name in ("class-0/000.png", "class-3/019.png"):
        (images / name).write_bytes(b"\x89PNG\r\n\x1a\nrest")
    result = call(images, tmp_path / "a.npz", "--batch", "4")
    assert result.exit_code == 1
    assert "2 images cannot be used" in result.output
    for name in ("class-0/000.png: cannot", "class-3/019.png: cannot", "--skip-broken"):
        assert name in result.output
    assert not (tmp_path / "a.npz").exists()
    assert not (tmp_path / "space.json").exists()


def test_broken_images_can_be_left_out(images: Path, tmp_path: Path) -> None:
    made(images, tmp_path / "whole.npz", "--batch", "4")
    for name in ("class-0/000.png", "class-3/019.png"):
        (images / name).write_bytes(b"")
    answer = made(images, tmp_path / "a.npz", "--batch", "4", "--skip-broken")
    assert [each["name"] for each in answer["broken"]] == ["class-0/000.png", "class-3/019.png"]
    assert answer["rows"] == 18
    whole, rest = arrays(tmp_path / "whole.npz"), arrays(tmp_path / "a.npz")
    assert rest["y"].tolist() == whole["y"][1:19].tolist()
    np.testing.assert_allclose(rest["x"], whole["x"][1:19], rtol=0, atol=1e-4)


def test_a_folder_of_broken_images_gives_nothing(images: Path, tmp_path: Path) -> None:
    for path in images.glob("*/*.png"):
        path.write_bytes(b"")
    refused(images, tmp_path / "a.npz", "--skip-broken", says="20 images cannot be used")
    assert not (tmp_path / "a.npz").exists()


def test_work_goes_on_where_a_broken_image_has_stopped_it(images: Path, tmp_path: Path) -> None:
    good = (images / "class-2/002.png").read_bytes()
    made(images, tmp_path / "whole.npz", "--batch", "4")
    (images / "class-2/002.png").write_bytes(b"")
    refused(images, tmp_path / "a.npz", "--batch", "4", says="class-2/002.png")
    (images / "class-2/002.png").write_bytes(good)
    answer = made(images, tmp_path / "a.npz", "--batch", "4")
    assert answer["resumed"] == 8  # two whole batches before it
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


# --- files, options, the end of a process ---


def test_outputs_are_not_replaced_unasked(images: Path, tmp_path: Path) -> None:
    made(images, tmp_path / "a.npz")
    refused(images, tmp_path / "a.npz", says="a.npz exists already")
    refused(images, tmp_path / "b.npz", "--name", "other", says="space.json exists already")
    made(images, tmp_path / "a.npz", "--name", "other", "--force")
    assert read_space(tmp_path / "space.json").name == "other"
    refused(images, tmp_path / "absent" / "a.npz", says="there is no folder")
    out = tmp_path / "b.npz"
    refused(images, out, "--space-out", tmp_path / "absent" / "s.json", says="there is no folder")


def test_wrong_usage(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.npz"
    refused(images, tmp_path / "a.parquet", says=".npz", code=2)
    refused(images, out, "--precision", "float8", says="float16", code=2)
    refused(images, out, "--batch", "0", says="--batch", code=2)
    refused(images, out, "--space", tmp_path / "s.json", "--name", "x", says="--space", code=2)


def _started(command: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_a_killed_process_leaves_nothing_half_and_is_continued(tmp_path: Path) -> None:
    pixels, labels = load_images()
    write_medmnist(
        tmp_path / "m.npz",
        train_images=pixels[::32].astype(np.uint8),
        train_labels=labels[::32].astype(np.uint8),
    )
    out, log = tmp_path / "a.npz", tmp_path / ".a.npz.embedding" / "done.jsonl"
    options = [*FAST, "--batch", "2"]
    command = [sys.executable, "-m", "worker.embedding", str(tmp_path / "m.npz"), "--out", str(out)]
    process = _started([*command, *options])
    until = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    assert not (tmp_path / "space.json").exists()
    answer = made(tmp_path / "m.npz", out, *options)
    assert 6 <= answer["resumed"] < 157
    made(tmp_path / "m.npz", tmp_path / "b.npz", *options)
    assert out.read_bytes() == (tmp_path / "b.npz").read_bytes()
