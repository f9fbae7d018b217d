"""Embed the catalogue into a new Milvus collection and verify it. See `mrse.index.build`."""

from pathlib import Path

from mrse.component import run
from mrse.config import Params
from mrse.index.build import build


def body(params: Params, workspace: Path) -> str:
    """Build the promoted challenger's collection."""
    index = build(params, workspace)
    if index["status"] == "skipped":
        return f"nothing to build: {index['reason']}"
    checked = index["verification"]
    recall = ", ".join(
        f"recall@{k} {found['mean']:.3f} (p5 {found['p5']:.3f})" for k, found in checked["recall"].items()
    )
    return f"{index['collection']} holds {index['rows']} items; {recall}, p50 {checked['latency_p50_ms']:.1f} ms"


if __name__ == "__main__":
    run("build_index", body)
