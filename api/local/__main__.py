"""``python -m api.local``: ``fedhypevae up``, as it calls itself for the background."""

from api.local.cli import up_app

if __name__ == "__main__":
    up_app(prog_name="fedhypevae up")
