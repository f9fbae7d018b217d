"""Small files, replaced whole: text, and the JSON between stages, readable and with sorted keys."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mrse.errors import DataError


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON with sorted keys, as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8; the folder is made when missing, and readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_handed(path: Path, stage: str) -> Any:
    """Read the JSON file that a stage hands on.

    Raises:
        DataError: it is missing or broken; the message names the stage to run.
    """
    try:
        return read_json(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the {stage} stage first (`dvc repro {stage}`)") from None
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); run the {stage} stage again") from None
