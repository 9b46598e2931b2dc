"""The benchmark of secure sums: a small cell for real, and what is beyond it on a line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.secagg import command
from benchmarks.secagg.cells import measure


def test_a_small_cell_is_summed_for_real_and_longer_ones_lie_on_a_line() -> None:
    said: list[str] = []
    short = measure(10, 200, said.append)
    assert said == ["keys and shares", "vectors", "opening", "plain"]
    assert (short.sites, short.neighbours, short.extrapolated) == (10, 9, False)
    assert min(short.client_s, short.client_plain_s, short.coordinator_s) > 0
    assert 0 < short.client_steps_s < short.client_s
    assert min(short.bytes_secure, short.bytes_plain) > 600
    longer = replace(
        short, length=400, client_s=3.0, client_steps_s=1.0, coordinator_s=short.coordinator_s + 1.0
    )
    found = longer.beyond(short, 1_000)
    assert found.extrapolated
    assert found.client_s == pytest.approx(1.0 + 2.5 * 2.0)
    assert found.client_plain_s == pytest.approx(2.5 * short.client_plain_s)
    assert found.coordinator_s == pytest.approx(short.coordinator_s + 4.0)


def test_too_little_for_the_target_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--most", "1000000"])
    assert stopped.value.code == 2
    assert "10,000,000 or more" in capsys.readouterr().err
