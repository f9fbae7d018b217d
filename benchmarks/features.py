"""What `build_features` costs, and what its image features tell: `python benchmarks/features.py [marketplace|fashion]`.

Prints JSON lines. Times: the stage with an empty cache and again with a full one, tokens and subwords per second.
Quality: accuracy of a linear probe (logistic regression on 8,000 pictures, tested on 4,000 others; 2/3 and 1/3 of a
smaller shop) that reads an attribute from the frozen features, against the same probe on a colour histogram (8 x 8 x 8)
and on raw pixels (16 x 16). The attributes judge only: no encoder sees them.

`marketplace` draws the simulated shop of `params.yaml`'s defaults; `fashion` reads the real photos under
`MRSE_SHARED_DATA` (default `../shared/data`), or says that they are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mrse.config import FeaturesConfig, ImageEncoderConfig, MarketplaceConfig
from mrse.data.contract import SnapshotMeta, conform, conformed_schema, write_meta, write_parquet
from mrse.data.images import ImageStore, decode
from mrse.features.build import build_features
from mrse.features.images import MAX_PIXELS
from mrse.features.preprocess import Preprocessing
from mrse.features.subword import SubwordHasher
from mrse.features.text import Tokenizer

Floats = NDArray[np.floating[Any]]
_TRAIN, _TEST, _RAREST = 8_000, 4_000, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shop", choices=["marketplace", "fashion"], nargs="?", default="marketplace")
    parser.add_argument("--steps", type=int, default=ImageEncoderConfig().pretrain_steps, help="pre-training steps")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        labels = _marketplace(workspace) if args.shop == "marketplace" else _fashion(workspace)
        config = FeaturesConfig(image_encoder=ImageEncoderConfig(pretrain_steps=args.steps))
        print(
            json.dumps({"shop": args.shop, "threads": torch.get_num_threads()} | _times(config, workspace)), flush=True
        )
        for attribute, accuracies in _probes(labels, workspace):
            print(json.dumps({"linear_probe": attribute} | accuracies), flush=True)


def _marketplace(workspace: Path) -> dict[str, list[str | None]]:
    from mrse.data.marketplace import simulate

    clean = workspace / "data/clean"
    start, end = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)
    simulate(MarketplaceConfig(events_per_day=2_000), start, end, clean)
    _describe(clean, "zip://::data/clean/images.zip")
    truth = pq.ParquetFile(clean / "truth/items.parquet").read()
    return {name: truth[name].to_pylist() for name in ("colour", "type", "pattern")}


def _fashion(workspace: Path) -> dict[str, list[str | None]]:
    shared = Path(os.environ.get("MRSE_SHARED_DATA") or Path(__file__).parents[2] / "shared/data") / "fashion"
    if not shared.is_dir():
        raise SystemExit(f"{shared}: the real photos are not here; set MRSE_SHARED_DATA")
    items = pq.read_table(shared / "items.parquet").sort_by("item_id")
    schema = conformed_schema(items.schema, "items", str(shared))
    batches = [conform(batch, schema, str(shared)) for batch in items.to_batches()]
    write_parquet(batches, workspace / "data/clean/items.parquet", schema)
    _describe(workspace / "data/clean", f"zip://::{shared.resolve()}/images.zip")
    return {name: items[name].to_pylist() for name in ("colour", "article_type")}


def _describe(clean: Path, image_root: str) -> None:
    day = datetime(2026, 3, 1, tzinfo=UTC)
    meta = SnapshotMeta(
        source="files", start=day, end=day, simulated=False, note="", rows={}, fingerprint="", image_root=image_root
    )
    write_meta(clean, meta)
    (clean.parent / "profiles").mkdir(parents=True)
    pq.write_table(
        pa.table({"query": pa.array([], pa.string()), "requests": pa.array([], pa.int64())}),
        clean.parent / "profiles/queries.parquet",
    )
    nothing = {name: pa.array([], pa.string()) for name in ("split", "query", "item_id")}
    pq.write_table(pa.table(nothing), clean.parent / "profiles/examples.parquet")


def _times(config: FeaturesConfig, workspace: Path) -> dict[str, Any]:
    seconds: dict[str, dict[str, float]] = {}
    for name, settings in (("empty_cache", config), ("full_cache", config)):
        seconds[name] = _timed(
            lambda settings=settings: build_features(
                settings,
                workspace / "data/clean",
                workspace / "data/profiles",
                workspace,
                workspace / "cache",
                workspace / "data/features",
            )
        )
    titles = pq.read_table(workspace / "data/clean/items.parquet")["title"].to_pylist()
    tokenizer = Tokenizer.load(workspace / "data/features")
    hasher = SubwordHasher.load(workspace / "data/features/subword.json")
    return {
        "stage": seconds,
        "titles_per_s": {
            "tokens": round(len(titles) / _timed(lambda: tokenizer.encode(titles, 32))["wall_s"]),
            "subwords": round(len(titles) / _timed(lambda: hasher.encode(titles, 12))["wall_s"]),
        },
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _timed(work: Callable[[], object]) -> dict[str, float]:
    """Wall and processor seconds: on a machine that does other things too, the second is the one to compare."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return {
        "wall_s": round(time.perf_counter() - wall, 3),
        "cpu_s": round(time.process_time() - processor, 3),
    }


def _probes(labels: dict[str, list[str | None]], workspace: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    row_N = pq.read_table(workspace / "data/features/image_index.parquet")["row"].to_numpy()
    array_PTV = np.load(workspace / "data/features/image_features.npy", mmap_mode="r")
    items = pq.read_table(workspace / "data/clean/items.parquet")["image"].to_pylist()
    for attribute, values in labels.items():
        often = {value for value, count in Counter(values).items() if count >= _RAREST} - {None}
        # One item per picture: the same picture in both halves would be memorised.
        first_P = np.unique(row_N, return_index=True)[1]
        usable = np.array([place for place in first_P if row_N[place] >= 0 and values[place] in often])
        chosen = np.random.default_rng(0).permutation(usable)[: _TRAIN + _TEST]
        pixels = _pixels([items[place] for place in chosen], workspace)
        target = np.unique([values[place] for place in chosen], return_inverse=True)[1]
        inputs = {
            "features": array_PTV[row_N[chosen]].reshape(len(chosen), -1).astype(np.float32),
            "colour_histogram": _histogram(pixels),
            "raw_pixels": pixels.reshape(len(pixels), 16, 4, 16, 4, 3).mean((2, 4)).reshape(len(pixels), -1),
        }
        accuracies = {name: round(_probe(table, target), 3) for name, table in inputs.items()}
        yield attribute, accuracies | {"values": len(often), "pictures": len(chosen)}


def _pixels(refs: Sequence[str], workspace: Path) -> NDArray[np.uint8]:
    meta = SnapshotMeta.model_validate_json((workspace / "data/clean/snapshot.json").read_text())
    store, squeeze = ImageStore(meta.image_root, workspace), Preprocessing.squeeze(64)
    return np.stack([squeeze.pixels(decode(store.read(ref), MAX_PIXELS)) for ref in refs])


def _histogram(pixels: NDArray[np.uint8]) -> Floats:
    codes = (pixels // 32).reshape(len(pixels), -1, 3).astype(np.int64) @ np.array([64, 8, 1])
    # Square roots: differences of counts then weigh alike in rare and in common colours.
    return np.sqrt(np.stack([np.bincount(row, minlength=512) for row in codes]) / codes.shape[1])


def _probe(table: Floats, target: NDArray[np.int64]) -> float:
    """Accuracy on the last third of a logistic regression fitted on the first two thirds; the best of three penalties
    for every kind of input."""
    cut = len(table) * _TRAIN // (_TRAIN + _TEST)
    x = torch.from_numpy(np.ascontiguousarray(table, dtype=np.float32))
    x = (x - x[:cut].mean(0)) / (x[:cut].std(0) + 1e-3)
    y = torch.from_numpy(target)
    return max(_fit(x, y, cut, penalty) for penalty in (1e-4, 1e-3, 1e-2))


def _fit(x: torch.Tensor, y: torch.Tensor, cut: int, penalty: float) -> float:
    weight = torch.zeros(x.shape[1], int(y.max()) + 1, requires_grad=True)
    bias = torch.zeros(weight.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = functional.cross_entropy(x[:cut] @ weight + bias, y[:cut]) + penalty * weight.square().sum()
        torch.autograd.backward(value)
        return value

    optimiser.step(loss)
    with torch.no_grad():
        return float(((x[cut:] @ weight + bias).argmax(1) == y[cut:]).float().mean())


if __name__ == "__main__":
    main()
