"""Runs the blocks of a page as a reader would: in order, in one folder, with one shell's variables
and one Python session.
"""

from __future__ import annotations

import configparser
import contextlib
import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from api.clients.service import NewClient
from api.planner.service import PlannerRequest
from api.runs.service import NewRun
from core.federation.plan import EmbeddingSpace, Plan
from core.synthesis.request import SynthesisRequest
from tests.docs.blocks import ROOT, Block
from tests.docs.zygote import PATIENCE
from worker.config import load_site

TIMEOUT_S = 150
# 23: whoever reads what curl writes has seen enough (``| head``).
_CURL = 'curl() { command curl "$@" || { local code=$?; [ $code = 23 ] || return $code; }; }\n'
SHELLS = ("sh", "bash", "console")
PROSE = ("", "text")
# What a file of a page is, by its name.
MODELS: Mapping[str, Any] = {
    "space.json": EmbeddingSpace,
    "question.json": PlannerRequest,
    "run.json": NewRun,
    "plan.toml": Plan,
    "plan.yaml": Plan,
    "client.json": NewClient,
    "request.json": SynthesisRequest,
}


class Broken(AssertionError):
    """A block does not do what its page says."""


class Reader:
    """One page's reader. ``replaced`` makes places of the text those of this machine."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], replaced: Callable[[str], str]
    ) -> None:
        self.folder = folder
        self._environment = dict(environment)
        self._replaced = replaced
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self._variables = folder / ".variables"
        self._variables.write_text("")

    def read(self, block: Block) -> str:
        """Run it, or keep it as the file that it is; what it printed. Raises ``Broken``."""
        if block.language in PROSE:
            self._holds_no_command(block)
        elif block.language == "python":
            return self._python(block)
        elif block.language in SHELLS:
            return self._shell(block)
        elif block.language in ("toml", "json", "yaml", "ini"):
            self._file(block)
        else:
            raise Broken(f"{block.where}: nobody runs {block.language!r}; name a language that is")
        return ""

    def _holds_no_command(self, block: Block) -> None:
        for line in block.text.splitlines():
            if line.lstrip("$ ").startswith(("fedhypevae ", "curl ", "make ", "import ", "pip ")):
                raise Broken(
                    f"{block.where}: {line.strip()!r} is a command: give the block a language"
                )

    def _python(self, block: Block) -> str:
        printed = io.StringIO()
        text = "\n" * (block.line - 1) + block.text  # lines of errors are those of the page
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(text, block.page, "exec"), self.names)  # noqa: S102
        except Exception as error:
            line = block.line
            trace = error.__traceback__
            while trace is not None:
                if trace.tb_frame.f_code.co_filename == block.page:
                    line = trace.tb_lineno
                trace = trace.tb_next
            raise Broken(f"{block.page}:{line}: {type(error).__name__}: {error}") from error
        return printed.getvalue()

    def _shell(self, block: Block) -> str:
        script = (
            f"set -euo pipefail -a\nsource {self._variables}\n{_CURL}"
            f"trap '_ended=$?; trap - EXIT; export -p > {self._variables}; "
            f"declare -f >> {self._variables}; exit $_ended' EXIT\n" + self._replaced(block.text)
        )
        # What the page puts in the background, the page stops.
        patience = {PATIENCE: str(TIMEOUT_S)} if " &\n" in block.text else {}
        variables = {**self._environment, **patience}
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=variables, text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode:
            said = f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
            raise Broken(f"{block.where}: exit code {done.returncode}\n{block.text}\n{said}")
        return done.stdout + done.stderr

    def _file(self, block: Block) -> None:
        name = block.title
        if not name and block.text.startswith("# "):  # as where titles are not shown
            name = block.text.split("\n", 1)[0].removeprefix("# ").split()[0]
        if not name or "/" in name:
            raise Broken(f'{block.where}: give this file its name: title="..."')
        path = self.folder / name
        path.write_text(self._replaced(block.text))
        try:
            self._check(name, path)
        except (Exception, SystemExit) as error:
            raise Broken(f"{block.where}: {name}: {error}") from error

    @staticmethod
    def _check(name: str, path: Path) -> None:
        text = path.read_text()
        if name.endswith("site.toml"):
            load_site(path)
            return
        if name.endswith(".service"):
            unit = configparser.ConfigParser(strict=True, interpolation=None)
            unit.optionxform = str  # type: ignore[assignment,method-assign]
            unit.read_string(text)
            if {"Unit", "Service", "Install"} - set(unit.sections()):
                raise ValueError("a unit has the sections Unit, Service, Install")
            return
        kind = next((made for end, made in MODELS.items() if name.endswith(end)), None)
        if kind is None:
            raise ValueError("no model checks a file of this name: see MODELS")
        loads = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
        kind.model_validate(loads[name.rpartition(".")[2]](text))


def environment(program: Path, home: Path, **values: str) -> dict[str, str]:
    """That of a reader's shell: ``fedhypevae`` on the path, none of this machine's settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FHV_")}
    path = os.pathsep.join([str(program.parent), str(Path(sys.executable).parent), kept["PATH"]])
    return {
        **kept, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(home), "COLUMNS": "100",
        "NO_COLOR": "1", **values,
    }  # fmt: skip
