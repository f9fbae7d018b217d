"""Training: align the experts, fuse them, keep the best.

Cost on two cores with the default parameters: about 4.8 steps/s, a little over three minutes for 900; under 2 GB.
Every random choice follows from (seed, step), so that a run that was killed and goes on gives the weights of an
unbroken one (on the same machine, with the same number of threads and processes).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrse.config import TrainConfig
from mrse.device import CPU
from mrse.errors import TrainingFailed
from mrse.jsonfile import read_handed
from mrse.model import towers
from mrse.model.retriever import Retriever
from mrse.progress import say, track
from mrse.training import checkpoint
from mrse.training.banks import Banks
from mrse.training.checkpoint import Checkpoint
from mrse.training.data import Shop, load_shop
from mrse.training.distributed import ALONE, World
from mrse.training.optimiser import Optimisers
from mrse.training.steps import Steps
from mrse.training.valid import check_collapse, evaluate

Row = tuple[int, dict[str, float]]

# A checkpoint of other code must never be gone on with: these decide what a step does.
_SOURCES = (Path(__file__).parent, Path(towers.__file__).parent)
# How a run is computed: a killed run may go on with another number of processes or on another device.
NO_PART_OF_A_RUN = {"processes", "process_timeout_seconds", "device", "compile"}
_PICTURES = 4096  # whose spread stands for all
_LOSS_EVERY = 10
_NORM = "gradient norm"


@dataclass(frozen=True)
class TrainReport:
    """What a run did.

    Attributes:
        metrics: flat final metrics.
        losses, valid: curves, rows of (step, values).
        fingerprint: of the package.
        resumed_from: the step it went on from; 0 for a run from the start.
        checkpoints: the folder of the run's checkpoints; None without any.
    """

    metrics: dict[str, float]
    losses: list[Row]
    valid: list[Row]
    fingerprint: str
    resumed_from: int
    checkpoints: Path | None

    def series(self) -> dict[str, list[tuple[int, float]]]:
        """Both curves by metric name: `train/...` and `valid/...`, which MLflow draws in two groups."""
        found: dict[str, list[tuple[int, float]]] = {}
        for prefix, rows in (("train", self.losses), ("valid", self.valid)):
            for step, values in rows:
                for name, value in values.items():
                    found.setdefault(f"{prefix}/{name}", []).append((step, value))
        return found


def train(
    config: TrainConfig,
    features: Path,
    clean: Path,
    profiles: Path,
    workspace: Path,
    out: Path,
    cache_dir: Path | None = None,
    world: World = ALONE,
    device: torch.device = CPU,
) -> TrainReport:
    """Train a challenger and write its package.

    Args:
        config: the `train` section.
        features: `data/features`.
        clean: `data/clean`.
        profiles: `data/profiles`.
        workspace: what relative paths of the features start from.
        out: the package's folder; written when training has ended.
        cache_dir: where checkpoints live (`<cache_dir>/train/<hash>`); None: no checkpoints. They stay until
            `checkpoint.clear(report.checkpoints)`, so that a failure after training costs no second training.
        world: the processes that train together; the first one writes.
        device: where to train.

    Raises:
        ConfigError: the text encoder cannot be loaded.
        DataError: an input is missing or broken, or differs between processes.
        TrainingFailed: nothing to learn from, a loss that is not finite, a collapsed expert, or a process was lost.
    """
    started = time.perf_counter()
    torch.manual_seed(config.seed)
    text_encoder = read_handed(features / "features.json", "build_features").get("text_encoder")
    retriever = Retriever.create(config.model, features, text_encoder)
    shop = load_shop(retriever, features, clean, profiles, config.relevant_grade, config.valid_requests)
    if len(shop.examples) == 0 and config.self_pairs == 0:
        raise TrainingFailed(f"{profiles / 'examples.parquet'}: no training example, and train.self_pairs is 0")
    retriever.model.fit_shop(shop.item_texts, shop.pictures.sample(_PICTURES))
    folder = None
    if cache_dir is not None:
        settings = config.model_dump_json(exclude=NO_PART_OF_A_RUN)
        key = checkpoint.run_key(settings, input_files(features, clean, profiles) + source_files())
        world.check_same(key, "configuration, inputs or code")
        if world.first:
            checkpoint.clear_abandoned(cache_dir / "train", but=key)
        folder = cache_dir / "train" / key
    if config.compile:
        retriever.model.compile_layers()
    run = Run(config, retriever.to(device), shop, folder, world)
    run.resume()
    say(f"train: {len(shop.examples)} examples, {len(shop.item_ids)} items, {len(shop.requests)} validation requests")
    sampler = run.steps.batches.sampler
    say(f"train: a pass reads {sampler.logged} examples of the log and {sampler.judged} judged ones")
    run.go()
    fingerprint = world.from_first(lambda: _saved(retriever, out))
    metrics = run.final_metrics() | {f"dropped_{reason}": float(n) for reason, n in shop.dropped.items()}
    metrics |= {"seconds": time.perf_counter() - started, "parameters": float(retriever.parameter_count)}
    return TrainReport(metrics, run.losses, run.valid, fingerprint, run.resumed_from, folder)


class Run:
    """One training run and its state: weights, optimiser, banks, curves, the best weights so far."""

    def __init__(
        self, config: TrainConfig, retriever: Retriever, shop: Shop, folder: Path | None, world: World = ALONE
    ) -> None:
        self.config = config
        self.world = world
        self.model = retriever.model
        self.steps = Steps(config, retriever, shop, world)
        self.optimisers = Optimisers(config, self.model, world)
        self.total = config.align_steps + config.fuse_steps
        self.losses: list[Row] = []
        self.valid: list[Row] = []
        self.resumed_from = 0
        self._folder = folder
        self._step = 0
        self._banks: Banks | None = None
        self._refreshed_at = -1
        self._best: dict[str, Tensor] = {}
        self._best_recall = -1.0
        self._best_step = 0
        self._unread: list[tuple[int, dict[str, Tensor]]] = []
        # A CPU has the losses at hand. Reading those of a GPU waits for it, and meanwhile it is given nothing to do.
        self._read_every = 1 if self.model.device.type == "cpu" else _LOSS_EVERY
        self._sums: dict[str, float] = {}
        self._counted = 0

    def go(self) -> None:
        """Train from where it stands to the end, then put the weights to keep in place.

        Raises:
            TrainingFailed: a loss or gradient is not finite, the weights to keep have collapsed, or a process was lost.
        """
        self.world.copy_weights(self.model)
        self.model.train()
        for step in track(range(self._step, self.total), "training", unit="step"):
            self._one(step)
            self._step = step + 1
            if self._folder is not None and self._step % self.config.checkpoint_every == 0:
                self._read()
                if self.world.first:
                    checkpoint.save(self._folder, self._state())
        bounds = self.config.min_expert_share, self.config.min_rank, self.config.max_uniformity
        check_collapse(dict(self.valid)[self._kept_step()], *bounds)
        if self._keeps_best():
            self.model.load_state_dict(self._best)
        self.model.eval()

    def final_metrics(self) -> dict[str, float]:
        """The last losses and the scores of the weights that are kept."""
        kept_step = self._kept_step()
        kept = dict(self.valid)[kept_step]
        last = {f"last_{name}": value for name, value in (self.losses[-1][1] if self.losses else {}).items()}
        return {"kept_step": float(kept_step), "steps": float(self.total), **last, **kept}

    def resume(self) -> None:
        """Go on from the first process's last checkpoint, if there is one, with however many processes it was made."""
        own = checkpoint.load(self._folder) if self._folder is not None and self.world.first else None
        told: Any = self.world.from_first(lambda: None if own is None else {"step": own.step, "notes": own.notes})
        if told is None:
            return
        tensors = self.world.tensors_from_first({} if own is None else own.tensors)
        found = Checkpoint(told["step"], tensors, told["notes"])
        if _shapes(found.part("model/")) != _shapes(self.model.state_dict()):
            say(f"train: the checkpoint in {self._folder} is of another model; starting anew")
            return
        self._restore(found)
        self.resumed_from = found.step
        say(f"train: going on from step {found.step} of {self.total}")

    def _keeps_best(self) -> bool:
        return self.config.keep == "best" and bool(self._best)

    def _kept_step(self) -> int:
        return self._best_step if self._keeps_best() else self.total

    def _one(self, step: int) -> None:
        torch.manual_seed(self.config.seed * 1_000_003 + step)
        fusing = step >= self.config.align_steps
        if fusing:
            self._refresh_when_due(step)
        parts = self.steps.fuse(step, self._held()) if fusing else self.steps.align(step)
        norm = self.optimisers.step(parts["loss"], step)
        self._unread.append((step, {name: value.detach() for name, value in parts.items()} | {_NORM: norm}))
        if len(self._unread) == self._read_every:
            self._read()
        done = step + 1 - self.config.align_steps
        if fusing and (done % self.config.eval_every == 0 or step + 1 == self.total):
            self._evaluate(step + 1)

    def _held(self) -> Banks:
        if self._banks is None:
            raise RuntimeError("fusing without banks")
        return self._banks

    def _refresh_when_due(self, step: int) -> None:
        fuse_step = step - self.config.align_steps
        if fuse_step % self.config.bank_refresh_steps == 0:
            banks = self._fresh(step)
            if fuse_step == 0:
                self.steps.start_fusion(banks)
                self.world.copy_weights(self.model)
                self._evaluate(step)
            banks.mined = self.steps.mine(banks, step)

    def _fresh(self, done: int) -> Banks:
        """Banks of the weights after `done` steps, made once; what was mined holds until it is mined again."""
        self._read()  # nothing is made with weights that are no numbers
        if self._banks is None or self._refreshed_at != done:
            mined = None if self._banks is None else self._banks.mined
            self._banks, self._refreshed_at = replace(self.steps.refresh(), mined=mined), done
        return self._banks

    def _evaluate(self, done: int) -> None:
        banks = self._fresh(done)
        row = self.world.from_first(lambda: evaluate(self.steps, banks, self.config.valid_k).flat())
        self.valid.append((done, row))
        say(f"train: step {done}: " + ", ".join(f"{name} {value:.4f}" for name, value in row.items()))
        if row.get("recall", -1.0) > self._best_recall:
            self._best_recall, self._best_step = row["recall"], done
            self._best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _read(self) -> None:
        """Take the losses of the last steps from the device."""
        unread, self._unread = self._unread, []
        for step, held in unread:
            values = dict(zip(held, torch.stack(list(held.values())).tolist(), strict=True))
            norm = values.pop(_NORM)
            if not all(math.isfinite(value) for value in values.values()):
                raise TrainingFailed(f"step {step}: the loss is not finite ({values}); lower train.learning_rate")
            if not math.isfinite(norm):
                raise TrainingFailed(f"step {step}: the gradient is not finite; lower train.learning_rate")
            self._count(step, values)

    def _count(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._counted += 1
        if self._counted == _LOSS_EVERY or step + 1 in (self.config.align_steps, self.total):
            row = {name: total / self._counted for name, total in self._sums.items()}
            self.losses.append((step + 1, row))
            self._sums, self._counted = {}, 0

    def _state(self) -> Checkpoint:
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in self._best.items()}
        tensors |= {f"optimiser/{name}": value for name, value in self.optimisers.state().items()}
        if self._banks is not None:
            tensors |= {f"bank/{name}": value for name, value in self._banks.tensors().items()}
        notes = {
            "losses": self.losses,
            "valid": self.valid,
            "best_recall": self._best_recall,
            "best_step": self._best_step,
            "refreshed_at": self._refreshed_at,
            "sums": self._sums,
            "counted": self._counted,
        }
        return Checkpoint(self._step, tensors, notes)

    def _restore(self, found: Checkpoint) -> None:
        self.model.load_state_dict(found.part("model/"))
        self._best = found.part("best/")
        self.optimisers.restore(found.part("optimiser/"))
        bank = found.part("bank/")
        self._banks = Banks.of(bank, self.model.device) if bank else None
        self._refreshed_at = found.notes["refreshed_at"]
        self.losses = [(int(step), dict(row)) for step, row in found.notes["losses"]]
        self.valid = [(int(step), dict(row)) for step, row in found.notes["valid"]]
        self._best_recall, self._best_step = found.notes["best_recall"], found.notes["best_step"]
        self._sums, self._counted = dict(found.notes["sums"]), found.notes["counted"]
        self._step = found.step


def _saved(retriever: Retriever, out: Path) -> str:
    retriever.save(out)
    return retriever.fingerprint


def input_files(features: Path, clean: Path, profiles: Path) -> list[Path]:
    """The files that a training reads; what it learns depends on no other."""
    files = [clean / "items.parquet"]
    files += [profiles / name for name in ("examples.parquet", "requests.parquet", "items.parquet")]
    return files + sorted(path for path in features.rglob("*") if path.is_file())


def source_files() -> list[Path]:
    """The code that decides what a training does."""
    return [file for folder in _SOURCES for file in sorted(folder.glob("*.py"))]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
