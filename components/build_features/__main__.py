"""`build_features`: tokeniser, subword hashing, frozen image encoder and image features."""

from __future__ import annotations

from pathlib import Path

from mrse import component
from mrse.config import Params
from mrse.features.build import build_features
from mrse.layout import CLEAN, FEATURES, PROFILES


def body(params: Params, workspace: Path) -> str:
    """Read `data/clean` and `data/profiles`, write `data/features`."""
    facts = build_features(
        params.build_features,
        clean=workspace / CLEAN,
        profiles=workspace / PROFILES,
        workspace=workspace,
        cache_dir=Path(params.services.under(workspace).cache_dir),
        out=workspace / FEATURES,
    )
    unusable = sum(facts["unusable_images"].values())
    pictures = f"{facts['images']} distinct pictures of {facts['items_with_image']} items, {unusable} unusable"
    if not facts["images"]:
        pictures = f"no pictures, so no image encoder ({unusable} unusable)"
    return f"{facts['vocab_size']} tokens; {pictures}"


if __name__ == "__main__":
    component.run("build_features", body)
