"""The benchmark of ``fedhypevae embed``: its arithmetic, its command line, a small run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.embedding import command
from benchmarks.embedding.command import Measured, Took


def test_ratios_are_of_turns_and_rates_of_medians() -> None:
    found = Measured(
        100,
        whole=[Took(2.0, 4.0), Took(5.0, 5.0), Took(10.0, 20.0)],
        bare=[Took(1.8, 2.0), Took(3.5, 4.5), Took(9.0, 16.0)],
    )
    assert command.figures(found) == {
        "images-per-second": 20.0,
        "processor-ms-per-image": 50.0,
        "bare-images-per-second": 28.57,
        "bare-processor-ms-per-image": 45.0,
    }
    assert command.targets(found) == {
        "embed-to-bare": {"value": 0.9, "target": 0.8, "ok": True},
        "embed-to-bare-processor": {"value": 0.8, "target": 0.8, "ok": True},
    }


@pytest.mark.parametrize("wrong", ["--images=33", "--images=0", "--turns=0", "--images=x"])
def test_wrong_options(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main([wrong])
    assert caught.value.code == 2
    assert "--help" in capsys.readouterr().err


def test_a_backbone_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--backbone", "nothing"]) == 1
    assert "no network 'nothing'" in capsys.readouterr().err


def test_a_run_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--images", "32", "--turns", "1", "--device", "cpu", "--results", str(tmp_path)]
    assert command.main(options) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    written = json.loads((tmp_path / "embedding.json").read_text())
    assert last["figures"] == written["figures"]
    assert last["figures"]["images-per-second"] > 0
    assert written["network"].startswith("tf_efficientnet_lite0.in1k of 224 pixels, float32")
