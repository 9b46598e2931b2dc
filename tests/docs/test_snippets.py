"""Every block of every page is run, in the page's order, against a real coordinator."""

from __future__ import annotations

import itertools
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
import structlog
from psycopg import sql

from tests.conftest import in_database
from tests.docs import zygote
from tests.docs.blocks import ROOT, Block, blocks_of, pages
from tests.docs.runner import PROSE, Broken, Reader, environment
from tests.docs.world import World, world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Whose token the reader of a page has, or of a section of the README; others are data scientists.
READERS = {
    "An administrator": "operator",  # who makes the token there
    "A client (a site)": "site",
    "docs/how-to/administrator.md": "admin",
    "docs/how-to/auditor.md": "auditor",
    "docs/how-to/site.md": "site",
    "docs/tutorial/images-to-rows.md": "admin",
    "docs/webhooks.md": "admin",
}
# How many blocks of a page are not run. Each says why, above it.
NOT_RUN: dict[str, int] = {
    "README.md": 4,
    "docs/deployment.md": 2,
    "docs/embed.md": 4,
    "docs/how-to/administrator.md": 1,
    "docs/how-to/auditor.md": 1,
    "docs/how-to/index.md": 1,
    "docs/how-to/site.md": 1,
    "docs/index.md": 1,
    "docs/tutorial/images-to-rows.md": 2,
}
RUN = {
    path.relative_to(ROOT).as_posix(): [block for block in blocks_of(path) if not block.not_run]
    for path in pages()
}
WITH_CODE = [page for page, found in RUN.items() if any(b.language not in PROSE for b in found)]


@dataclass(frozen=True)
class Read:
    """A block, what it printed, and the names of Python after it."""

    block: Block
    said: str
    names: dict[str, Any]


def _readme(read: list[Read], folder: Path) -> None:
    """What the README shows is what comes out, not only something."""
    mine = [each for each in read if each.block.section == "A data scientist"]
    pandas, arrow, client = [each for each in mine if each.block.language == "python"]
    rows = pandas.names["rows"]
    assert (len(rows), sorted(rows.columns)) == (4000, ["embedding", "label", "label_id"])
    batches = [line.split(" ", 1) for line in arrow.said.splitlines()]
    assert sum(int(number) for number, _ in batches) == 20_000
    assert batches[0] == ["4096", "['embedding', 'label', 'label_id']"]
    assert len(client.names["frame"]) == 4000
    shell = [each for each in mine if each.block.language == "sh"]
    (asked,) = [each for each in shell if "head -3" in each.block.text]
    (verified,) = [each for each in shell if "fedhypevae verify" in each.block.text]
    keys = [sorted(json.loads(line)) for line in asked.said.splitlines()]
    assert keys == [["embedding", "label", "label_id"]] * 3
    assert pq.read_table(folder / "rows.parquet").num_rows == 4000
    assert "ok       rows: 4,000 rows" in verified.said
    assert "site-b: epsilon" in verified.said
    assert pq.read_table(folder / "home.parquet").num_rows == 1000
    page = (folder / "report.html").read_text()
    assert "site-b" in page
    assert page.endswith("</html>")


def _site(read: list[Read], _: Path) -> None:
    said = "".join(each.said for each in read)
    assert said.count("Enrolled as 'site-a'") == 2
    assert "fingerprint" in said


def _take_away(read: list[Read], folder: Path) -> None:
    client, *_ = [each for each in read if each.block.language == "python"]
    assert client.said == "4096\n"
    (sampled,) = [each for each in read if each.block.language == "sh"]
    assert "| site-a | 4 | 1e-05 | patient |" in sampled.said
    assert pq.read_table(folder / "rows.parquet").num_rows == 1000
    assert len((folder / "rows.csv").read_text().splitlines()) == 1001


def _auditor(read: list[Read], _: Path) -> None:
    (recomputed,) = [each for each in read if "recomputed" in each.said]
    mine, stated = map(float, re.findall(r"\d\.\d{3}", recomputed.said))
    assert stated >= 3.999  # run "first"; more if the site has worked for "second" meanwhile
    assert mine == pytest.approx(stated, rel=1e-3)


OUTCOMES: Mapping[str, Callable[[list[Read], Path], None]] = {
    "README.md": _readme,
    "docs/take-away.md": _take_away,
    "docs/how-to/auditor.md": _auditor,
    "docs/how-to/site.md": _site,
}


# What this page has erased, no other page could replay: it has a coordinator of its own.
ERASES = "docs/how-to/site.md"


@contextmanager
def own_database(postgres_url: str, template_database: str, name: str) -> Iterator[str]:
    """A database that no other test empties."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        made = sql.Identifier(name)
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} (FORCE)").format(made))
        template = sql.Identifier(template_database)
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(made, template))
        yield in_database(postgres_url, name)
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} (FORCE)").format(made))


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    """The command ``fedhypevae``, with its imports done once."""
    folder = Path(tempfile.mkdtemp(prefix="fhv-docs-"))
    at = folder / "socket"
    path = folder / "bin" / "fedhypevae"
    path.parent.mkdir()
    path.write_text(zygote.PROGRAM.format(python=sys.executable, socket=str(at)))
    path.chmod(0o755)
    served = subprocess.Popen([sys.executable, "-m", "tests.docs.zygote", str(at)], cwd=ROOT)
    try:
        yield path  # it imports while the world is made
    finally:
        served.terminate()
        served.wait(10)


@pytest.fixture(scope="module")
def worlds(
    postgres_url: str,
    template_database: str,
    worker_id: str,
    program: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], World]]:
    """The world of a page, by the page's name; made when the first page asks for it."""
    made: dict[str, World] = {}
    # Before any test of the module, for each leaves the configuration as it has found it.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    with without_settings(), ExitStack() as stack:

        def of(page: str) -> World:
            kind = "erases" if page == ERASES else "keeps"
            if kind not in made:
                name = f"fhv_docs_{kind}_{worker_id}"
                database = own_database(postgres_url, template_database, name)
                folder = tmp_path_factory.mktemp(kind)
                made[kind] = stack.enter_context(world(stack.enter_context(database), folder))
            return made[kind]

        yield of


@contextmanager
def without_settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FHV_BROKER_URL", "FHV_ENV"):
            patch.delenv(name, raising=False)
        yield


def reader(
    page: str,
    scope: str,
    real: World,
    program: Path,
    valkey_url: str,
    folder: Path,
    patch: pytest.MonkeyPatch,
) -> Reader:
    """A reader of a page, with a token of a scope."""
    until = time.monotonic() + 90
    while not (program.parent.parent / "socket").exists():
        assert time.monotonic() < until, "the command is not ready"
        time.sleep(0.05)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = {"FHV_COORDINATOR_URL": real.fed.url, "FHV_PORT": port}
    if scope in real.tokens:
        given["FHV_TOKEN"] = real.tokens[scope]
    else:  # those make their own
        patch.delenv("FHV_TOKEN", raising=False)
    made = environment(program, folder, **given)
    for name, value in {**given, "PATH": made["PATH"], "PYTHONPATH": made["PYTHONPATH"]}.items():
        patch.setenv(name, value)
    patch.chdir(folder)
    real.furnish(folder, page)
    return Reader(
        folder, made, lambda text: real.replaced(text).replace("redis://broker:6379/0", valkey_url)
    )


@pytest.mark.parametrize("page", WITH_CODE)
def test_every_block_of_the_page_runs(
    page: str,
    worlds: Callable[[str], World],
    program: Path,
    valkey_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = worlds(page)
    read: list[Read] = []
    for of, blocks in itertools.groupby(RUN[page], _reader_of):
        scope = READERS.get(of, "scientist")
        one = reader(page, scope, real, program, valkey_url, tmp_path, monkeypatch)
        read += [Read(block, one.read(block), dict(one.names)) for block in blocks]
    if page in OUTCOMES:
        OUTCOMES[page](read, tmp_path)


def _reader_of(block: Block) -> str:
    """The README has a section for each role; every other page is read by one person."""
    return block.section if block.page == "README.md" else block.page


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    left = [block for path in pages() for block in blocks_of(path) if block.not_run]
    assert dict(Counter(block.page for block in left)) == NOT_RUN
    assert all(len((block.not_run or "").split()) >= 4 for block in left)
    total = sum(block.language not in PROSE for found in RUN.values() for block in found)
    assert len(left) < total / 5


def test_pages_without_code_hold_no_command(tmp_path: Path) -> None:
    one = Reader(tmp_path, {}, str)
    for page in set(RUN) - set(WITH_CODE):
        for block in RUN[page]:
            one.read(block)


BROKEN = {
    "python": "rows = 1\nassert rows == 2\n",
    "sh": "curl -sf $FHV_COORDINATOR_URL/v1/nothing\n",
    "bash": "fedhypevae verify no-such-file.parquet\n",
    "toml": "# site.toml\n[site]\nstate_dir = 1\n",
    "json": '{"plan": {}}\n',
    "yaml": "name: x\n",
    "text": "  fedhypevae agent check\n",
    "perl": "print 1\n",
}


@pytest.mark.parametrize("language", BROKEN)
def test_a_broken_block_fails_and_says_where(
    language: str,
    worlds: Callable[[str], World],
    program: Path,
    valkey_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "sandbox"
    folder.mkdir()
    one = reader(
        "page.md", "scientist", worlds("page.md"), program, valkey_url, folder, monkeypatch
    )
    page = tmp_path / "page.md"
    named = {"json": ' title="run.json"', "yaml": ' title="plan.yaml"'}.get(language, "")
    page.write_text(
        f"# A page\n\n```sh\ntrue\n```\n\n```{language}{named}\n{BROKEN[language]}```\n"
    )
    fine, broken = blocks_of(page, tmp_path)
    one.read(fine)
    with pytest.raises(Broken, match=rf"page\.md:{8 if language != 'python' else 9}"):
        one.read(broken)


def test_blocks_are_found_with_their_reasons(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: needs four GPUs here -->\n```sh\na\n```\ntext\n\n## B\n"
        '1. x\n\n    ```python title="x.py"\n    if a:\n        b\n    ```\n```\nprose\n```\n'
    )
    assert blocks_of(page, tmp_path) == [
        Block("page.md", 3, "", "sh", "", "a\n", "needs four GPUs here"),
        Block("page.md", 11, "B", "python", "x.py", "if a:\n    b\n", None),
        Block("page.md", 15, "B", "", "", "prose\n", None),
    ]
    page.write_text("```sh\nnever ends\n")
    with pytest.raises(ValueError, match="no end"):
        blocks_of(page, tmp_path)
