"""What training costs beside sentence-transformers' trainer, where a step's time goes, what memory a large shop takes.

    python -m benchmarks.training                            # examples per second, the peer's and ours, taking turns
    python -m benchmarks.training --compile                  # the same, our transformer layers compiled
    python -m benchmarks.training --profile                  # the share of a step that is data loading, of the GPU's
    python -m benchmarks.training --memory --items 1000000   # peak memory of a whole training, in a process of its own

All on made-up titles and, for the full model, made-up image features in a memory-mapped file, 5 tokens of 128 + 125
float16 numbers for every item. The peer is `SentenceTransformerTrainer` with MultipleNegativesRankingLoss over a BERT
of Light-Bert's size and vocabulary, with its own batching and collation. `text_only` is our two-tower of Light-Bert
alone: no pictures, no histories, no preferences. Each step of all three takes `batch_size` (query, item) pairs. Ours is
weighed as the default run is: its align and fuse steps, and the refreshes of the bank among them. Wall time, medians
over rounds in which the contenders take turns; ratios are taken within a round.

All run on a GPU where torch finds one. There the share of what the GPU can do is told as well: the matrix products of a
step (`torch.utils.flop_counter`) over the rate of one large product in the same precision.

    pip install --constraint constraints.txt -e '.[train,bench]'
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from mrse.config import TrainConfig
from mrse.data import contract
from mrse.device import pick
from mrse.features.encoder import ImageEncoder
from mrse.features.preprocess import Preprocessing
from mrse.features.subword import SubwordHasher
from mrse.features.text import Tokenizer
from mrse.jsonfile import write_json
from mrse.model.retriever import Retriever
from mrse.profiles import tables
from mrse.training.data import load_shop
from mrse.training.optimiser import Optimisers
from mrse.training.steps import Steps
from mrse.training.train import train

_WORDS, _TITLE_WORDS, _QUERIES, _EXAMPLES, _HISTORY, _REQUESTS = 3000, 8, 3000, 20_000, 30, 200
_ASOF, _WHEN = datetime(2026, 3, 5, tzinfo=UTC), datetime(2026, 3, 6, tzinfo=UTC)
_WARM = 3
_LONGEST = 8
_TEXT_ONLY: dict[str, Any] = {
    "experts": {"vbert": False, "ftatt": False},
    "images": False,
    "user_history": False,
    "item_history": False,
    "preferences": False,
}
# What a step does that is no arithmetic of the model, as functions of `mrse/`: choosing, tokenising, gathering.
_LOADING = {
    ("sampling.py", "draw"),
    ("sampling.py", "catalogue_items"),
    ("sampling.py", "pick_hard"),
    ("augment.py", "pseudo_query"),
    ("augment.py", "hide_words"),
    ("augment.py", "vague_pairs"),
    ("augment.py", "drop_modalities"),
    ("retriever.py", "query_texts"),
    ("inputs.py", "batch"),
    ("inputs.py", "concatenated"),
    ("encode.py", "batch"),
    ("encode.py", "memory"),
    ("banks.py", "shopper_memory"),
    ("batches.py", "excluded"),
    ("batches.py", "log_q"),
}
_SMALL_RUN: dict[str, Any] = {
    "align_steps": 20,
    "fuse_steps": 20,
    "bank_refresh_steps": 20,
    "eval_every": 20,
    "valid_requests": _REQUESTS,
    "min_rank": 1.0,
    "max_uniformity": 0.0,
    "min_expert_share": 0.0,
    "loss": {"mine": {"first": 10, "last": 50}},
}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=15, help="of each kind in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=["float32", "bfloat16"], nargs="*", default=["bfloat16", "float32"])
    parser.add_argument("--compile", action="store_true", help="compile the transformer layers of ours (train.compile)")
    parser.add_argument("--profile", action="store_true", help="where the time of our steps goes")
    parser.add_argument("--memory", action="store_true", help="peak memory of a small run over --items")
    parser.add_argument("--work", type=Path, help="where the made-up shop is written; else a temporary folder")
    parser.add_argument("--train-in", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.train_in is not None:
        print(json.dumps(trained_memory(arguments.train_in)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        folder = Path(name)
        write_shop(folder, arguments.items)
        if arguments.memory:
            found = memory(folder, arguments.items)
        elif arguments.profile:
            steps, compiled = arguments.steps, arguments.compile
            found = {kind: shares(Ours(folder, kind, "auto", compiled), steps) for kind in ("text_only", "full")}
        else:
            found = {
                precision: throughput(folder, precision, arguments.steps, arguments.rounds, arguments.compile)
                for precision in arguments.precision
            }
        print(json.dumps({"items": arguments.items, "threads": arguments.threads} | found, indent=2))


class Ours:
    """Steps of one of our models over the made-up shop."""

    def __init__(self, folder: Path, kind: str, precision: str, compiled: bool = False) -> None:
        model = _TEXT_ONLY if kind == "text_only" else {}
        self.config = TrainConfig.model_validate({"model": model, "precision": precision, "compile": compiled})
        torch.manual_seed(0)
        retriever = Retriever.create(self.config.model, folder / "features")
        self.device = pick("auto")
        shop = _load(folder, self.config, retriever)
        retriever.model.fit_shop(shop.item_texts, shop.pictures.sample(1000))
        if compiled:
            retriever.model.compile_layers()
        self._steps = Steps(self.config, retriever.to(self.device), shop)
        self._optimisers = Optimisers(self.config, retriever.model)
        self._banks = self._steps.refresh()
        retriever.model.train()
        self._done = 0

    def align(self) -> None:
        """One step of phase 1."""
        self._optimisers.step(self._steps.align(self._done)["loss"], self._done % self.config.align_steps)
        self._done += 1

    def fuse(self) -> None:
        """One step of phase 2."""
        step = self.config.align_steps + self._done % self.config.fuse_steps
        self._optimisers.step(self._steps.fuse(self._done, self._banks)["loss"], step)
        self._done += 1

    def seconds_per_step(self, steps: int) -> dict[str, float]:
        """Of each phase, of a refresh of the bank, and the mean of the default run with its refreshes."""
        config = self.config
        align, fuse = _seconds(self.align, steps), _seconds(self.fuse, steps)
        refresh = _seconds(self._steps.refresh, 1, warm=0)
        refreshes = 1 + config.fuse_steps / config.bank_refresh_steps  # the last one is for the last validation
        total = align * config.align_steps + fuse * config.fuse_steps + refresh * refreshes
        mean = total / (config.align_steps + config.fuse_steps)
        return {"align": align, "fuse": fuse, "refresh": refresh, "mean": mean}

    def flops_per_step(self) -> dict[str, int]:
        """Floating-point operations in the matrix products of a step of each phase, forwards and backwards."""
        return {"align": _flops(self.align), "fuse": _flops(self.fuse)}


class Peer:
    """Steps of sentence-transformers' trainer on the same pairs."""

    def __init__(self, folder: Path, precision: str) -> None:
        from benchmarks import peer  # an extra that the other modes do without

        peer.quiet()
        config = TrainConfig()
        torch.manual_seed(0)
        bert = peer.same_bert(folder / "features/tokenizer.json", config.model, folder / "bert")
        model = peer.sentence_transformer(bert, config.model.title_length, pick("auto").type)
        examples = pq.read_table(folder / "profiles/examples.parquet", columns=["query", "item_id"])
        items = pq.read_table(folder / "clean/items.parquet", columns=["item_id", "title"])
        title = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
        pairs = examples["query"].to_pylist(), [title[item] for item in examples["item_id"].to_pylist()]

        def make(steps: int, clock: Clock) -> Any:
            return peer.trainer(
                model,
                pairs,
                folder / "peer",
                steps=steps,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                bfloat16=precision == "bfloat16",
                callbacks=[clock],
            )

        self._make = make

    def seconds_per_step(self, steps: int) -> dict[str, float]:
        """The mean from the end of one step to the end of the next, so with the batches that it makes between them."""
        clock = Clock()
        self._make(_WARM + steps, clock).train()
        return {"mean": (clock.ended[-1] - clock.ended[_WARM - 1]) / steps}


class Clock(transformers.TrainerCallback):
    """Notes when each step of a trainer has ended."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the trainer."""
        self.ended.append(time.perf_counter())


def throughput(folder: Path, precision: str, steps: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """Examples per second of each contender, and of ours over the peer's."""
    contenders = {
        "sentence_transformers": Peer(folder, precision),
        "text_only": Ours(folder, "text_only", precision, compiled),
        "full": Ours(folder, "full", precision, compiled),
    }
    found = [{name: c.seconds_per_step(steps) for name, c in contenders.items()} for _ in range(rounds)]
    batch = TrainConfig().batch_size
    per_second = {name: [batch / seconds[name]["mean"] for seconds in found] for name in contenders}
    over_peer = {
        name: [ours / peer for ours, peer in zip(values, per_second["sentence_transformers"], strict=True)]
        for name, values in per_second.items()
        if name != "sentence_transformers"
    }
    device = pick("auto")
    on_gpu = {"gpu": gpu_shares(contenders, found, precision, device)} if device.type == "cuda" else {}
    return on_gpu | {
        "examples_per_s": {name: round(float(np.median(values))) for name, values in per_second.items()},
        "over_the_peer": {name: round(float(np.median(values)), 2) for name, values in over_peer.items()},
        "over_the_peer_by_round": {name: [round(v, 2) for v in values] for name, values in over_peer.items()},
        "ms": {
            name: {part: round(1e3 * float(np.median([s[name][part] for s in found])), 1) for part in found[0][name]}
            for name in contenders
        },
    }


def gpu_shares(
    contenders: dict[str, Any], found: list[dict[str, dict[str, float]]], precision: str, device: torch.device
) -> dict[str, Any]:
    """The peak rate of products in a precision, and which share of it each phase of our models reaches."""
    peak = peak_flops(torch.bfloat16 if precision == "bfloat16" else torch.float32, device)
    reached: dict[str, Any] = {}
    for name, contender in contenders.items():
        if isinstance(contender, Ours):
            reached[name] = {
                phase: round(flops / float(np.median([seconds[name][phase] for seconds in found])) / peak, 4)
                for phase, flops in contender.flops_per_step().items()
            }
    return {"name": torch.cuda.get_device_name(device), "peak_tflops": round(peak / 1e12, 1), "share_of_peak": reached}


def peak_flops(dtype: torch.dtype, device: torch.device, side: int = 8192) -> float:
    """Floating-point operations per second of one large matrix product."""
    square = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / _seconds(lambda: square @ square, 10)


def _flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def shares(ours: Ours, steps: int) -> dict[str, dict[str, Any]]:
    """Shares of a step's time by phase. Loading is Python, which the profiler slows down: its share is at most this."""
    phases = {"align": ours.align, "fuse": ours.fuse}
    found: dict[str, dict[str, Any]] = {phase: dict(_shares(work, steps)) for phase, work in phases.items()}
    if ours.device.type == "cuda":
        for phase, work in phases.items():
            found[phase]["gpu"] = _kernels(work, steps)
    return found


def _kernels(work: Callable[[], object], steps: int) -> dict[str, Any]:
    """What the GPU does in a step: kernels started, the share of wall time that it computes, what it computes longest.

    Wall time is taken without the profiler, which slows the CPU down.
    """
    from torch.profiler import ProfilerActivity, profile

    wall = _seconds(work, steps)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        _seconds(work, steps, warm=0)
    kernels = sorted(profiler.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
    busy = sum(kernel.self_device_time_total for kernel in kernels) / steps
    return {
        "step_ms": round(1e3 * wall, 2),
        "kernels_per_step": round(sum(kernel.count for kernel in kernels) / steps),
        "busy": round(busy / 1e6 / wall, 3),
        "longest": {
            kernel.key[:100]: round(kernel.self_device_time_total / steps / busy, 3) for kernel in kernels[:_LONGEST]
        },
    }


def _shares(work: Callable[[], object], steps: int) -> dict[str, float]:
    _seconds(work, _WARM)
    profiler = cProfile.Profile()
    profiler.enable()
    _seconds(work, steps, warm=0)
    profiler.disable()
    stats: dict[tuple[str, int, str], Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in stats.values())
    parts = {"loading": 0.0, "backward": 0.0, "optimiser": 0.0}
    for (file, _, function), (_, _, _, seconds, callers) in stats.items():
        where = Path(file).name, function
        # Called by another of them, it is counted there already.
        apart = not any((Path(caller).name, name) in _LOADING for caller, _, name in callers)
        parts["loading"] += seconds if where in _LOADING and apart else 0.0
        parts["backward"] += seconds if where == ("distributed.py", "backward") else 0.0
        parts["optimiser"] += seconds if where == ("optimiser.py", "step") and "mrse" in file else 0.0
    parts["optimiser"] -= parts["backward"]
    parts["forward and loss"] = total - sum(parts.values())
    return {name: round(seconds / total, 3) for name, seconds in parts.items()}


def memory(folder: Path, items: int) -> dict[str, float]:
    """A small run over the whole shop in a process of its own: both phases, a refresh, mining and two validations."""
    command = [sys.executable, "-m", "benchmarks.training", "--train-in", str(folder)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found | {"features_file_gib": _gib((folder / "features/image_features.npy").stat().st_size / 1024)}


def trained_memory(folder: Path) -> dict[str, float]:
    """Train, and say how much memory that took at most: all of it, and without the pages of mapped files."""
    peak = {"RssAnon": 0, "VmRSS": 0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in peak:
                    peak[name] = max(peak[name], int(value.split()[0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    data = {name: folder / name for name in ("features", "clean", "profiles")}
    report = train(
        TrainConfig.model_validate(_SMALL_RUN), **data, workspace=folder, out=folder / "package", device=pick("auto")
    )
    ended.set()
    watcher.join()
    return {
        "seconds": round(time.perf_counter() - started),
        "validations": len(report.valid),
        "peak_anonymous_gib": _gib(peak["RssAnon"]),
        "peak_resident_gib": _gib(peak["VmRSS"]),
    }


def _gib(kib: float) -> float:
    return round(kib / 1024**2, 2)


def _seconds(work: Callable[[], object], times: int, warm: int = _WARM) -> float:
    """Wall seconds of one call, to its end on a GPU too."""
    for _ in range(warm):
        work()
    _wait()
    started = time.perf_counter()
    for _ in range(times):
        work()
    _wait()
    return (time.perf_counter() - started) / times


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _load(folder: Path, config: TrainConfig, retriever: Retriever) -> Any:
    data = [folder / name for name in ("features", "clean", "profiles")]
    return load_shop(retriever, *data, config.relevant_grade, config.valid_requests)


def write_shop(folder: Path, items: int) -> None:
    """What the stages before `train` leave behind, of made-up words; every item has a picture and two profiles."""
    rng = np.random.default_rng(0)
    ids = pa.array([f"i{number:08d}" for number in range(items)])
    titles = _titles(items, rng)
    none = pa.nulls(items, pa.string())
    clean = {"item_id": ids, "title": pa.array(titles), "category": none, "image": none}
    nothing = {"price": pa.nulls(items, pa.float64()), "updated_at": pa.nulls(items, contract.TIME)}
    contract.write_parquet(pa.table(clean | nothing), folder / "clean/items.parquet")
    places = rng.permutation(items)[:_QUERIES]
    queries = [" ".join(titles[place].split()[:3]) for place in places]
    _write_features(folder / "features", titles, ids, rng)
    _write_examples(folder / "profiles", ids, queries, places, rng)
    _write_item_profiles(folder / "profiles/items.parquet", ids, pa.array(queries), rng)


def _titles(items: int, rng: np.random.Generator) -> list[str]:
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(_WORDS)]
    picks = np.minimum(rng.zipf(1.3, (items, _TITLE_WORDS)) - 1, _WORDS - 1)
    return [" ".join(words[place] for place in row) for row in picks]


def _write_features(folder: Path, titles: Sequence[str], ids: pa.Array, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    Tokenizer.train(titles[:50_000], 6000).save(folder / "tokenizer.json")
    SubwordHasher(50_000).save(folder / "subword.json")
    write_json(folder / "features.json", {"text_encoder": None})
    vit = transformers.ViTConfig(
        hidden_size=128, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    encoder = ImageEncoder(transformers.ViTModel(vit, add_pooling_layer=False), Preprocessing.squeeze(16), 5, 5)
    encoder.save(folder / "image_encoder")
    shape = len(ids), encoder.tokens, encoder.dim
    file = folder / "image_features.npy"
    features = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
    for start in range(0, len(ids), 10_000):
        part = features[start : start + 10_000]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
    features.flush()
    pq.write_table(pa.table({"item_id": ids, "row": pa.array(np.arange(len(ids)))}), folder / "image_index.parquet")


def _write_examples(
    folder: Path, ids: pa.Array, queries: Sequence[str], places: np.ndarray, rng: np.random.Generator
) -> None:
    folder.mkdir(parents=True)
    asked = rng.integers(0, len(queries), _EXAMPLES + _REQUESTS)
    rows = [
        {
            "event_time": _WHEN,
            "user_id": f"u{number}",
            "query": queries[query],
            "hist_items": _some(ids, _HISTORY, rng),
            "hist_actions": ["click"] * _HISTORY,
            "hist_ages": rng.uniform(0, 500, _HISTORY).tolist(),
            "profile_asof": _ASOF,
        }
        for number, query in enumerate(asked)
    ]
    chosen = ids.take(pa.array(places[asked])).to_pylist()
    examples = [
        row
        | {"split": "train", "item_id": item, "action": "click", "weight": 1.0, "hard_negatives": _some(ids, 3, rng)}
        for row, item in zip(rows[_REQUESTS:], chosen[_REQUESTS:], strict=True)
    ]
    requests = [
        row | {"split": "valid", "request_id": row["user_id"], "source": "events", "relevant": [item], "gains": [1.0]}
        for row, item in zip(rows[:_REQUESTS], chosen[:_REQUESTS], strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(examples, tables.EXAMPLES), folder / "examples.parquet")
    pq.write_table(pa.Table.from_pylist(requests, tables.REQUESTS), folder / "requests.parquet")


def _some(ids: pa.Array, count: int, rng: np.random.Generator) -> list[str]:
    found: list[str] = ids.take(pa.array(rng.integers(0, len(ids), count))).to_pylist()
    return found


def _write_item_profiles(path: Path, ids: pa.Array, queries: pa.Array, rng: np.random.Generator) -> None:
    """Two cut times; eight queries for every item."""
    rows, kept = 2 * len(ids), 8
    ends = pa.array(np.arange(0, kept * rows + 1, kept, dtype=np.int32))
    asked = queries.take(pa.array(rng.integers(0, len(queries), kept * rows)))
    weights = pa.array(rng.random(kept * rows, dtype=np.float32))
    empty = pa.ListArray.from_arrays(pa.array(np.zeros(rows + 1, dtype=np.int32)), pa.array([], pa.string()))
    numbers = pa.array(np.zeros(rows, dtype=np.int64))
    columns = {
        "item_id": pa.concat_arrays([ids, ids]),
        "asof": pa.array(np.repeat([_ASOF.replace(day=4), _ASOF], len(ids)), tables.ITEMS.field("asof").type),
        "queries": pa.ListArray.from_arrays(ends, asked),
        "query_weights": pa.ListArray.from_arrays(ends, weights),
        "co_items": empty,
        "co_weights": empty.cast(tables.ITEMS.field("co_weights").type),
        "popularity": pa.array(np.zeros(rows)),
        "impressions": numbers,
        "clicks": numbers,
        "orders": numbers,
    }
    pq.write_table(pa.table(columns, schema=tables.ITEMS), path)


if __name__ == "__main__":
    main()
