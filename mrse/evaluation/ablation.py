"""Ablations: variants of the training, each for several seeds, scored as the gate scores, against the full model.

A finished run (variant x seed) is kept under a hash of its configuration, data and code and is never trained twice; a
killed one goes on from its last checkpoint. Processes with different variants may share one folder.

Cost: one training and one scoring per run; the comparison takes about a second per variant.

Legend of the shape suffixes: Q requests.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mrse.config import DataChange, GateConfig, Params, TrainConfig
from mrse.data.contract import write_parquet
from mrse.device import pick
from mrse.errors import DataError, TrainingFailed
from mrse.evaluation import gate, metrics, ranking, scoring, window
from mrse.evaluation.bootstrap import Floats, Lift, Pair, paired_lifts
from mrse.evaluation.inputs import Inputs, read_inputs
from mrse.evaluation.scoring import Embedded, Result
from mrse.evaluation.variants import Variant, full_model, make_variant, write_profiles
from mrse.evaluation.window import Source
from mrse.jsonfile import read_json, write_json
from mrse.layout import CLEAN, FEATURES, PROFILES
from mrse.model.retriever import Retriever
from mrse.profiles import tables
from mrse.progress import say
from mrse.training import checkpoint
from mrse.training import train as training
from mrse.training.reports import write_curves
from mrse.training.train import train

_SCORING = (metrics, ranking, scoring, window)
_RESULT = "result.json"
TABLE = "ablation.csv"


@dataclass(frozen=True)
class Run:
    """One variant trained with one seed.

    Attributes:
        variant: what is trained.
        config: the variant's section `train` with this run's seed.
        folder: where its result is kept.
    """

    variant: Variant
    config: TrainConfig
    folder: Path

    @property
    def done(self) -> bool:
        """Whether its result is there: scores, or why training failed."""
        return (self.folder / _RESULT).is_file()

    @property
    def result(self) -> dict[str, Any]:
        """What was kept: `failed` (a message or None) and `metrics` of the training."""
        found: dict[str, Any] = read_json(self.folder / _RESULT)
        return found

    def values(self, source: Source) -> dict[str, Floats]:
        """Per-request values (Q,) by metric."""
        table = tables.read(self.folder / f"{source}.parquet")
        return {name: table.column(name).to_numpy() for name in table.column_names if name != "request_id"}

    def curve(self) -> list[tuple[int, float]]:
        """Recall on the validation requests by step; empty without any."""
        with (self.folder / "valid.csv").open(encoding="utf-8", newline="") as stream:
            return [(int(row["step"]), float(row["recall"])) for row in csv.DictReader(stream) if row["recall"]]


@dataclass(frozen=True)
class Compared:
    """A variant against the full model, over the same seeds.

    Attributes:
        variant: which.
        failed: why the training of some seed failed; the rest is then empty.
        valid: mean recall on the validation requests; None without any.
        lifts: variant minus full by metric, seeds pooled.
        slices: the same of the primary metric within each slice.
        by_seed: the primary metric's difference, seed by seed.
    """

    variant: Variant
    failed: str | None
    valid: float | None
    lifts: dict[str, Lift]
    slices: dict[str, Lift]
    by_seed: list[float]


@dataclass(frozen=True)
class Ablation:
    """Everything that the report shows.

    Attributes:
        inputs: the requests that were asked.
        gate: primary metric, depth and level of the intervals.
        primary: the primary metric's name.
        seeds: the seeds that are pooled.
        full: the full model against itself, for its means.
        rows: the variants, in the order of `ablate.variants`.
        curves: validation curves by variant, one list of (step, recall) per seed.
    """

    inputs: Inputs
    gate: GateConfig
    primary: str
    seeds: list[int]
    full: Compared
    rows: list[Compared]
    curves: dict[str, list[list[tuple[int, float]]]]


def run_ablation(
    params: Params, workspace: Path, out: Path, only: Sequence[str] = (), seeds: int = 3, steps_share: float = 1.0
) -> Ablation:
    """Train and score what is not yet there, then compare.

    Args:
        params: sections `train`, `gate` (metric, requests, intervals), `ablate` and `services`.
        workspace: the folder that holds `data/clean`, `data/profiles` and `data/features`.
        out: where results are kept, one folder per run under `runs`.
        only: names of variants or groups; empty: all. The full model is always trained.
        seeds: how many, from `train.seed` on.
        steps_share: of the training's steps.

    Returns:
        The comparison of the chosen variants.

    Raises:
        ConfigError: an unknown variant, or one whose changes do not fit the section `train`.
        DataError: an input is missing, or there is no request to score on.
        TrainingFailed: the training of the full model. That of a variant is a result.
    """
    chosen = params.ablate.choose(only)
    inputs = read_inputs(params.gate, workspace)
    if not len(inputs.asked):
        raise DataError(f"{workspace / PROFILES / 'requests.parquet'}: no test request to score ablations on")
    runner = Runner(params, workspace, out, inputs)
    features = workspace / FEATURES
    full = full_model(params, features, steps_share)
    variants = [full, *(make_variant(params, group, name, full, features) for name, group in chosen.items())]
    seed_list = [params.train.seed + number for number in range(seeds)]
    runs = {variant.name: [runner.run(variant, seed) for seed in seed_list] for variant in variants}
    todo = [run for of_variant in runs.values() for run in of_variant]
    for place, run in enumerate(todo, start=1):
        what = f"ablate: {place} of {len(todo)}: {run.variant.name}, seed {run.config.seed}"
        say(f"{what}, kept from an earlier run" if run.done else f"{what}, {run.variant.parameters:,} parameters")
        runner.finish(run)
    compared = [compare(params.gate, inputs, variant, runs[variant.name], runs[full.name]) for variant in variants]
    return Ablation(
        inputs=inputs,
        gate=params.gate,
        primary=f"{params.gate.primary}_at_{params.gate.k}",
        seeds=seed_list,
        full=compared[0],
        rows=compared[1:],
        curves={
            row.variant.name: [run.curve() for run in runs[row.variant.name]] for row in compared if not row.failed
        },
    )


class Runner:
    """Trains, scores and keeps runs over one workspace."""

    def __init__(self, params: Params, workspace: Path, out: Path, inputs: Inputs) -> None:
        self.inputs = inputs
        self._gate = params.gate
        self._workspace = workspace
        self._out = out
        self._cache = Path(params.services.under(workspace).cache_dir)
        self._given = checkpoint.run_key("", [*_data_files(workspace), *_code_files()])

    def run(self, variant: Variant, seed: int) -> Run:
        """A run and the folder that belongs to its configuration, data and code."""
        config = variant.train.model_copy(update={"seed": seed})
        gate = self._gate.model_dump(mode="json", include={"k", "relevant_grade", "max_requests"})
        trained = config.model_dump(mode="json", exclude=training.NO_PART_OF_A_RUN)
        said = [trained, variant.data.model_dump(mode="json"), gate, self._given]
        key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
        return Run(variant, config, self._out / "runs" / f"{variant.name}.seed{seed}.{key}")

    def finish(self, run: Run) -> None:
        """Train and score a run unless that is done; a training that fails is a result, but for the full model.

        Raises:
            TrainingFailed: of the full model.
        """
        if run.done:
            return
        try:
            self._train_and_score(run)
        except TrainingFailed as error:
            if not run.variant.group:
                raise
            say(f"ablate: {run.variant.name}: {error}")
            write_json(run.folder / _RESULT, {"failed": str(error)})

    def _train_and_score(self, run: Run) -> None:
        scratch = run.folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        profiles = self._workspace / PROFILES
        if run.variant.data != DataChange():
            write_profiles(run.variant.data, profiles, scratch / "profiles")
            profiles = scratch / "profiles"
        device = pick(run.config.device)
        report = train(
            run.config,
            features=self._workspace / FEATURES,
            clean=self._workspace / CLEAN,
            profiles=profiles,
            workspace=self._workspace,
            out=scratch / "package",
            cache_dir=self._cache,
            device=device,
        )
        for source, result in self._score(run, scratch / "package", device).items():
            write_parquet(_per_request(result), run.folder / f"{source}.parquet")
        write_curves(report, run.folder)
        shutil.rmtree(scratch)
        # Last: a run that has its result has everything.
        write_json(run.folder / _RESULT, {"failed": None, "metrics": report.metrics})
        if report.checkpoints is not None:
            checkpoint.clear(report.checkpoints)

    def _score(self, run: Run, package: Path, device: torch.device) -> dict[Source, Result]:
        asof = self.inputs.window.asof
        retriever = Retriever.load(package).to(device)
        embedded = Embedded(run.variant.name, retriever, self._workspace, self._cache, asof)
        return {source: embedded.score(asked, self._gate.k) for source, asked in self.inputs.sources.items()}


def compare(
    config: GateConfig, inputs: Inputs, variant: Variant, runs: Sequence[Run], full_runs: Sequence[Run]
) -> Compared:
    """A variant against the full model, seed by seed the same requests.

    The intervals are those of `paired_lifts` over each request's mean over the seeds. Shoppers are resampled, seeds are
    not: how much the training's own chance matters is seen in `by_seed`.
    """
    failed = next((str(run.result["failed"]) for run in runs if run.result["failed"] is not None), None)
    if failed is not None:
        return Compared(variant, failed, None, {}, {}, [])
    primary = f"{config.primary}_at_{config.k}"
    slices = gate.slice_lifts(
        config, inputs.gate_window, *(pooled(side, inputs.source)[primary] for side in (runs, full_runs))
    )
    del slices[gate.ALL]
    pairs = zip(runs, full_runs, strict=True)
    by_seed = [
        float(np.nanmean(run.values(inputs.source)[primary] - full.values(inputs.source)[primary]))
        for run, full in pairs
    ]
    recalls = [run.result["metrics"].get("recall") for run in runs]
    valid = None if None in recalls else float(np.mean(recalls))
    return Compared(variant, None, valid, dict(_lifts(config, inputs, runs, full_runs)), slices, by_seed)


def pooled(runs: Sequence[Run], source: Source) -> dict[str, Floats]:
    """Mean over the seeds of each request's value (Q,), by metric."""
    by_seed = [run.values(source) for run in runs]
    return {name: np.mean([values[name] for values in by_seed], axis=0) for name in by_seed[0]}


def _lifts(
    config: GateConfig, inputs: Inputs, runs: Sequence[Run], full_runs: Sequence[Run]
) -> Iterator[tuple[str, Lift]]:
    """Every metric on the deciding requests; those of people's judgments as `judged.<metric>`."""
    for source, asked in inputs.sources.items():
        variant, full = pooled(runs, source), pooled(full_runs, source)
        found = paired_lifts(
            {name: Pair(variant[name], full[name]) for name in variant},
            asked.clusters,
            alpha=config.alpha,
            resamples=config.resamples,
            seed=config.seed,
            min_clusters=config.min_clusters,
        )
        if source == inputs.source:
            yield from found.items()
        if source == "judgments":
            yield from ((f"judged.{name}", lift) for name, lift in found.items())


def _data_files(workspace: Path) -> list[Path]:
    files = training.input_files(workspace / FEATURES, workspace / CLEAN, workspace / PROFILES)
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise DataError(f"{', '.join(missing)}: no such file; run `dvc repro build_features` first")
    return files


def _code_files() -> list[Path]:
    return training.source_files() + [Path(str(module.__file__)) for module in _SCORING]


def _per_request(result: Result) -> pa.Table:
    scored = result.scored
    columns = {name: pa.array(values, pa.float64()) for name, values in sorted(scored.values.items())}
    return pa.table({"request_id": pa.array(scored.request_ids, pa.string()), **columns})
