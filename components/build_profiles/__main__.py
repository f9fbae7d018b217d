"""Profiles, examples and requests from the clean tables: `data/clean` in, `data/profiles` out."""

from pathlib import Path

from mrse.component import run
from mrse.config import Params
from mrse.jsonfile import write_json
from mrse.layout import CLEAN, PROFILES
from mrse.profiles.build import build_profiles


def body(params: Params, workspace: Path) -> str:
    """Read and write as `dvc.yaml` declares."""
    out = workspace / PROFILES
    report = build_profiles(workspace / CLEAN, out, params.build_profiles)
    write_json(out / "profiles.json", report)
    examples, requests = report["examples"], report["requests"]
    return (
        f"{examples['train']:,} training and {examples['valid']:,} validation examples, "
        f"{requests['valid']:,} validation and {requests['test']:,} test requests, "
        f"{report['rows']['users']:,} shoppers, {report['rows']['items']:,} item profiles"
    )


if __name__ == "__main__":
    run("build_profiles", body)
