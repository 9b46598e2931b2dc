"""``python -m worker.embedding``: the command where it is not installed."""

from __future__ import annotations

from worker.embedding.cli import embed_app

if __name__ == "__main__":
    embed_app(prog_name="fedhypevae embed")
