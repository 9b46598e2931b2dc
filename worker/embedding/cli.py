"""Command ``fedhypevae embed``. Exit: 0 done, 1 failed, 2 usage, 130 stopped (call again)."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy as np
import typer

from worker.errors import EmbeddingError, WorkerError

if TYPE_CHECKING:  # torch and timm are imported when there is something to embed
    from worker.embedding.run import Outcome

_DEFAULT = "vit_small_patch14_dinov2.lvd142m"
_STOPPED = 130
_SHOWN = 20

embed_app = typer.Typer(
    add_completion=False,
    # Plain tracebacks: decorated ones print local variables, which may hold records.
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
)


@dataclass(frozen=True)
class Asked:
    """The options of one call."""

    source: Path
    out: Path
    space: Path | None
    space_out: Path
    name: str | None
    classes: tuple[str, ...] | None
    backbone: str | None
    weights: Path | None
    size: int
    split: str | None
    units: Path | None
    unit_column: str
    batch: int
    device: str
    precision: str
    white: int
    skip_broken: bool
    force: bool


@embed_app.command()
def embed(
    source: Annotated[
        Path, typer.Argument(help="A folder with a sub-folder per class, or a MedMNIST .npz.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The .npz to write: `data` in site.toml.")],
    space: Annotated[
        Path | None,
        typer.Option("--space", help="A space.json to keep to: its classes, its backbone."),
    ] = None,
    space_out: Annotated[
        Path | None,
        typer.Option("--space-out", help="Where to write the space; space.json beside --out."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the space.")] = None,
    classes: Annotated[
        str | None,
        typer.Option("--classes", help="All classes of all sites, with commas, in order."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", help=f"A network of timm; {_DEFAULT}.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Its .safetensors or .pth; from the hub without it."),
    ] = None,
    size: Annotated[
        int,
        typer.Option("--size", min=0, max=2048, help="Pixels that it sees; 0: the network's own."),
    ] = 224,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Sub-folder, or train, val, test, all of a MedMNIST file."),
    ] = None,
    units: Annotated[
        Path | None,
        typer.Option("--units", help="CSV that names each file's patient: file,patient."),
    ] = None,
    unit_column: Annotated[
        str, typer.Option("--unit-column", help="The column of --units that is the privacy unit.")
    ] = "patient",
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="Images at once.")] = 32,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        str,
        typer.Option("--precision", help="auto, float32; on a GPU float16 (auto) or bfloat16."),
    ] = "auto",
    white: Annotated[
        int,
        typer.Option("--white", min=1, max=65_535, help="White of 16-bit images (12 bits: 4095)."),
    ] = 65_535,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave broken images out, and name them.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Turn images into the file of embeddings that an agent reads. Nothing leaves this machine.

    Killed or stopped, the same call goes on where it was; the output appears when it is complete.
    """
    if out.suffix != ".npz":
        raise typer.BadParameter("must end in .npz", param_hint="--out")
    if precision not in ("auto", "float32", "float16", "bfloat16"):
        raise typer.BadParameter("auto, float32, float16 or bfloat16", param_hint="--precision")
    if space is not None and (classes or name or space_out):
        raise typer.BadParameter(
            "a given space has its name and classes, and is not written again", param_hint="--space"
        )
    named = None if classes is None else tuple(each.strip() for each in classes.split(","))
    asked = Asked(
        source, out, space, space_out or out.parent / "space.json", name, named, backbone, weights,
        size, split, units, unit_column, batch, device, precision, white, skip_broken, force,
    )  # fmt: skip
    try:
        made = _make(asked)
    except WorkerError as error:
        _stop(str(error), 1)
    except KeyboardInterrupt:
        _stop("stopped; the same call goes on where this was.", _STOPPED)
    if as_json:
        print(json.dumps(made, indent=2))
    else:
        _tell(made)


def _make(asked: Asked) -> dict[str, Any]:
    from worker.agent.check import read_space
    from worker.embedding import contract, units
    from worker.embedding.sources import open_source

    given = None if asked.space is None else read_space(asked.space)
    _require_room(asked)
    source = open_source(
        asked.source,
        split=asked.split,
        classes=asked.classes if given is None else given.classes,
        white=asked.white,
    )
    unit = (
        units.read(asked.units, asked.unit_column, source.records)
        if asked.units is not None
        else None
    )

    from worker.embedding.backbone import Backbone
    from worker.embedding.progress import watched
    from worker.embedding.run import embed
    from worker.embedding.working import opened

    wanted = asked.backbone or (_DEFAULT if given is None else contract.backbone_of(given))
    network = Backbone.open(
        wanted,
        asked.weights,
        size=asked.size or None,
        device=asked.device,
        precision=asked.precision,  # type: ignore[arg-type]
    )
    name = asked.name or contract.default_name(network)
    ours = contract.made(network, asked.white, given.name if given else name, source.classes)
    if given is not None:
        contract.require_same(given, ours)
    else:
        contract.require_writable(asked.space_out, ours, force=asked.force)
    began = time.monotonic()
    with opened(asked.out, network.dim) as folder:
        with watched(len(source.records)) as watch:
            outcome = embed(
                source, network, ours, folder,
                batch=asked.batch, skip_broken=asked.skip_broken, watch=watch,
            )  # fmt: skip
        seconds = time.monotonic() - began
        arrays = {
            "x": folder.rows(),
            "y": np.array([source.records[row].label for row in outcome.kept]),
        }
        if unit is not None:
            arrays["unit"] = np.array([unit[row] for row in outcome.kept])
        if given is None:  # first: the output is the sign that all is there
            contract.write(ours, asked.space_out)
        folder.finish(arrays)
    return _facts(asked, source, network, ours, outcome, seconds)


def _require_room(asked: Asked) -> None:
    """Before anything slow: there is room for both outputs."""
    if not asked.out.parent.is_dir():
        raise EmbeddingError(
            f"there is no folder {asked.out.parent}.", field="out", mend="Make it, or name another."
        )
    if asked.out.exists() and not asked.force:
        raise EmbeddingError(
            f"{asked.out} exists already.",
            field="out",
            mend="Name another, or replace it: --force.",
        )
    if not asked.space_out.parent.is_dir():
        raise EmbeddingError(
            f"there is no folder {asked.space_out.parent}.", field="space-out", mend="Make it."
        )


def _facts(
    asked: Asked, source: Any, network: Any, ours: Any, outcome: Outcome, seconds: float
) -> dict[str, Any]:
    from core.federation.plan import digest_of

    fresh = len(source.records) - outcome.resumed
    return {
        "out": str(asked.out),
        "rows": len(outcome.kept),
        "dim": network.dim,
        "classes": dict(sorted(Counter(source.records[row].label for row in outcome.kept).items())),
        "unit": asked.unit_column if asked.units else "record",
        "broken": [{"name": name, "why": why} for name, why in outcome.broken],
        "notes": list(source.notes),
        "resumed": outcome.resumed,
        "seconds": round(seconds, 3),
        "images_per_second": round(fresh / seconds, 2) if fresh else None,
        "device": network.device,
        "precision": network.precision,
        "space": str(asked.space or asked.space_out),
        "space_digest": digest_of(ours),
    }


def _tell(made: dict[str, Any]) -> None:
    for each in made["broken"][:_SHOWN]:
        print(f"left out: {each['name']}: {each['why']}", file=sys.stderr)
    counts = ", ".join(f"{name} {count:,}" for name, count in made["classes"].items())
    rate = made["images_per_second"]
    speed = f"{rate:,.1f} images/s" if rate else "all of an earlier call"
    print(f"{made['out']}: {made['rows']:,} embeddings, {made['dim']} wide ({counts})")
    print(f"{speed} on {made['device']} in {made['precision']}")
    for note in made["notes"]:
        print(note)
    if made["broken"]:
        print(f"{len(made['broken']):,} broken images left out")
    print(f"space {made['space']}, digest {made['space_digest']}")
    print(f'site.toml: data = "{made["out"]}", unit = "{made["unit"]}"')


def _stop(message: str, code: int) -> NoReturn:
    print(f"fedhypevae: {message}", file=sys.stderr)
    raise typer.Exit(code)
