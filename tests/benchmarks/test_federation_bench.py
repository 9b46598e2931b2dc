"""The pure parts of the federation benchmark, its HTTP client, and what it says is measured."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.federation import command, figures, plans, results, scaling
from benchmarks.federation.crowd import bodies, each
from benchmarks.federation.http import Answer, Http, RequestFailed, expect
from benchmarks.federation.ingest import Ingest
from benchmarks.federation.numbers import line, percentile
from benchmarks.federation.overhead import overhead
from benchmarks.federation.polling import Poll, Polled
from benchmarks.federation.results import Measured
from benchmarks.federation.scaling import Series
from benchmarks.federation.thousand import Round
from benchmarks.last_line import shown
from core.errors import UpdateRejected
from core.federation.rule import spec_for
from core.federation.updates import check_update, expectation

README = Path(__file__).resolve().parents[2] / "benchmarks" / "README.md"

ROUND = Round(
    clients=1000, update_bytes=132_976, updates_per_s=100.0, handing_s=6.0, summing_s=1.0,
    outside_ms=20.0, inside_ms=60.0, polls=4000, polls_inside=200, poll_cpu_ms=1.5,
    worker_mib=210.0, api_mib=300.0,
)  # fmt: skip
INGEST = Ingest(132_976, (90.0, 110.0, 100.0), (200.0, 150.0, 160.0), 0.005, 0.002)


# --- numbers ---


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(v) for v in range(1, 101)]
    assert percentile(values, 0.99) == 99.0
    assert percentile(values[::-1], 0.5) == 50.0
    assert percentile([7.0], 0.99) == 7.0
    assert percentile(values[:3], 0.99) == 3.0
    assert math.isnan(percentile([], 0.99))


def test_a_line_through_points_of_a_line_explains_everything() -> None:
    found = line([1.0, 2.0, 5.0], [5.0, 7.0, 13.0])
    assert (found.slope, found.intercept, found.r2) == pytest.approx((2.0, 3.0, 1.0))
    assert found.at(10.0) == pytest.approx(23.0)


def test_a_parabola_is_told_from_a_line() -> None:
    x = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert line(x, [v**3 for v in x]).r2 < results.LINEAR_R2
    noisy = [3.0 * v + e for v, e in zip(x, (0.1, -0.1, 0.1, 0.0, -0.1, 0.1), strict=True)]
    assert line(x, noisy).r2 > results.LINEAR_R2


@pytest.mark.parametrize(
    ("x", "y"), [([1.0], [1.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0])]
)
def test_no_line_without_two_places(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="two points"):
        line(x, y)


def test_a_poll_that_meets_a_sum_at_all_is_one_during_it() -> None:
    polled = Polled(polls=[Poll(0.0, 0.01), Poll(0.9, 1.1), Poll(1.9, 2.1), Poll(3.0, 3.02)])
    outside, inside = polled.split([(1.0, 2.0)])
    assert outside == pytest.approx([10.0, 20.0])
    assert inside == pytest.approx([200.0, 200.0])


def test_a_round_counts_with_what_lies_before_it() -> None:
    rounds = [
        {
            "opened_at": f"2026-01-01T00:00:{a:06.3f}Z",
            "published_at": f"2026-01-01T00:00:{b:06.3f}Z",
        }
        for a, b in ((0.0, 2.0), (2.5, 3.5), (3.5, 5.0))
    ]
    found = overhead(rounds)
    assert (found.sketch, found.rounds, found.between) == (2.0, (1.0, 1.5), (0.5, 0.0))
    assert found.mean == pytest.approx(5.0 / 3)


# --- targets ---


def _measured() -> Measured:
    few = replace(ROUND, clients=100, worker_mib=200.0)
    series = Series("clients", (1.0, 2.0), (1.0, 2.0), line([1.0, 2.0], [1.0, 2.0]))
    return Measured(None, [INGEST], [few, ROUND], [series])


def test_targets_are_about_the_ratio_and_the_largest_round() -> None:
    goals = results.targets(_measured())
    assert goals["ingest-130kB-to-bare"] == {"value": 0.625, "target": 0.5, "ok": True}
    assert goals["api-mib"]["ok"]
    assert goals["poll-p99-ms"]["value"] == 20.0
    assert goals["sum-memory-growth"] == {"value": 1.05, "target": 1.1, "ok": True}
    assert goals["linear-in-clients"]["ok"]


def test_what_misses_its_target_says_so() -> None:
    bad = Measured(
        None,
        [replace(INGEST, size=5_000_640, ours=(10.0,), bare=(30.0,))],
        [
            replace(ROUND, clients=100, worker_mib=100.0),
            replace(ROUND, api_mib=501.0, outside_ms=51),
        ],
    )
    goals = results.targets(bad)
    assert set(goals) == {"ingest-5MB-to-bare", "api-mib", "poll-p99-ms", "sum-memory-growth"}
    assert not any(goal["ok"] for goal in goals.values())
    rows = shown(results.figures(bad), goals)
    assert rows[0] == ("ingest-5MB-to-bare", "0.333", "0.5 MISSED")


def test_nothing_measured_makes_no_target_and_no_figure() -> None:
    assert results.targets(Measured()) == {}
    assert results.figures(Measured()) == {}
    nobody = Measured(rounds=[replace(ROUND, inside_ms=math.nan, polls_inside=0)])
    assert "poll-p99-ms-while-summing@1000" not in results.figures(nobody)
    json.dumps(results.figures(nobody), allow_nan=False)


def test_readme_and_targets_agree() -> None:
    text = README.read_text()
    section = text[text.index("## Federation") :]
    for name in results.targets(_measured()):
        assert f"`{name}`" in section
    assert f"{scaling.FEW} clients" in section


# --- what is sent ---


def test_bodies_are_updates_that_a_coordinator_accepts() -> None:
    spec = spec_for("run", plans.plan("a", "33k", rounds=1, quorum=1), plans.SPACE, 2)
    order = {"spec": spec.model_dump(mode="json"), "round_number": 1}
    first, second = bodies(order, 2)
    expected = expectation(spec, 1)
    check_update(first, expected)
    assert first != second
    assert len(first) == pytest.approx(130_000, rel=0.05)
    with pytest.raises(UpdateRejected):
        check_update(first, replace(expected, noise_std=2 * expected.noise_std))


def test_sizes_are_those_of_their_names() -> None:
    for size in plans.HIDDEN:
        assert plans.parameters(size) == pytest.approx(1e3 * float(size[:-1]), rel=0.06)
    assert 4 * plans.parameters("1250k") == pytest.approx(5e6, rel=0.01)


async def test_senders_take_each_item_once_and_so_many_at_a_time() -> None:
    now, most, seen = 0, 0, []

    async def one(item: int) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        seen.append(item)
        now -= 1

    await each(range(20), one, 4)
    assert sorted(seen) == list(range(20))
    assert most == 4


async def test_the_client_goes_on_where_a_server_has_closed_a_connection() -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One answer a connection, which says that it stays and does not."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        asked.append(await reader.readexactly(length))
        writer.write(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, Http(server.sockets[0].getsockname()[1]) as http:
        for body in (b"", b"one", b"two"):
            answer = await http.request("PUT", "/x", "token", body)
            assert expect(answer, 201).json() == {}
    assert asked == [b"", b"one", b"two"]


def test_an_unexpected_answer_is_an_error() -> None:
    with pytest.raises(RequestFailed, match="status 503"):
        expect(Answer(503, b"busy"), 200, 204)


# --- files and options ---


def test_the_figure_is_written(tmp_path: Path) -> None:
    x = np.array([1.0, 2.0, 3.0])
    series = [
        Series(over, tuple(x), tuple(2 * x), line(list(x), list(2 * x)))
        for over in ("clients", "parameters")
    ]
    figures.costs(series, tmp_path / "f.png", p=33_000, clients=20)
    assert (tmp_path / "f.png").stat().st_size > 0


@pytest.mark.parametrize("arguments", [["--only", "everything"], ["--clients", "100"]])
def test_a_wrong_option_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
