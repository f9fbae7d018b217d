"""`python -m components.rollback [VERSION]`: `mrse rollback` as a task, which hands on what is live."""

from __future__ import annotations

import sys

from components.exchange import hand_on, pipeline_folder
from mrse import config
from mrse.errors import ConfigError, MrseError
from mrse.index import swap


def main(version: str) -> None:
    """Put a model version live again; an empty one means what was live before."""
    if version and not version.isdigit():
        raise ConfigError(f"version {version!r} is not a number")
    pipeline = pipeline_folder()
    params = config.load(pipeline / "params.yaml")
    live = swap.rollback(params, pipeline, int(version) if version else None)
    hand_on({"collection": live.collection, "version": live.stamp.model_version})


if __name__ == "__main__":
    try:
        main(*sys.argv[1:] or [""])
    except MrseError as error:
        print(f"rollback: {error}", file=sys.stderr)
        raise SystemExit(1) from None
