"""Variants of the training for `mrse ablate`: which there are, the configuration of each, and the data that it sees.

Legend of the shape suffixes: M rows of a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mrse import config
from mrse.config import FULL, DataChange, ModelConfig, Params, TrainConfig
from mrse.data.contract import write_parquet
from mrse.jsonfile import read_handed
from mrse.model.retriever import Retriever
from mrse.profiles import tables

_MATCH = "match"
_HIDDEN = "model.hidden"
DATA = "data."
_DRAW_SEED = 0


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        group, name: as in `ablate.variants`; the full model has neither group nor changes.
        changes: as written there.
        train: the changed section `train`.
        data: what is changed in the data.
        parameters: number of trainable parameters.
    """

    group: str
    name: str
    changes: Mapping[str, Any]
    train: TrainConfig
    data: DataChange
    parameters: int


def full_model(params: Params, features: Path, steps_share: float = 1.0) -> Variant:
    """The section `train` as it stands; `steps_share` of its steps."""
    train = shortened(params.train, steps_share)
    return Variant("", FULL, {}, train, DataChange(), count_parameters(train.model, features))


def make_variant(params: Params, group: str, name: str, full: Variant, features: Path) -> Variant:
    """A variant of the full model.

    Args:
        params: section `ablate`.
        group, name: which.
        full: what the changes start from.
        features: `data/features`, which parameter counts depend on.

    Raises:
        ConfigError: a change names an unknown key or an impossible value.
    """
    changes = params.ablate.variants[group][name]
    where = f"params.yaml: ablate.variants.{group}.{name}"
    of_data = {key.removeprefix(DATA): value for key, value in changes.items() if key.startswith(DATA)}
    of_train = {key: value for key, value in changes.items() if not key.startswith(DATA)}
    matched = of_train.get(_HIDDEN) == _MATCH
    if matched:
        del of_train[_HIDDEN]
    train = config.changed(full.train, of_train, where)
    if matched:
        hidden = matching_hidden(train.model, full.parameters, features)
        train = config.changed(train, {_HIDDEN: hidden}, where)
    data = config.changed(DataChange(), of_data, f"{where}: data")
    return Variant(group, name, changes, train, data, count_parameters(train.model, features))


def shortened(train: TrainConfig, share: float) -> TrainConfig:
    """A share of both phases' steps; at least one step of the second."""
    steps = {"align_steps": round(share * train.align_steps), "fuse_steps": max(1, round(share * train.fuse_steps))}
    return train.model_copy(update=steps)


def count_parameters(model: ModelConfig, features: Path) -> int:
    """Trainable parameters of a model over what `build_features` made."""
    text_encoder = read_handed(features / "features.json", "build_features").get("text_encoder")
    return Retriever.create(model, features, text_encoder).parameter_count


def matching_hidden(model: ModelConfig, parameters: int, features: Path) -> int:
    """The hidden size, a multiple of `heads`, whose number of parameters is nearest to a given one.

    Parameters grow with the hidden size, so the two neighbours are found by bisection.
    """

    def count(units: int) -> int:
        sized = model.model_copy(update={"hidden": units * model.heads})
        return count_parameters(sized, features)

    low, high = 1, 2
    while count(high) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    nearest = min((low, high), key=lambda units: abs(count(units) - parameters))
    return nearest * model.heads


def write_profiles(change: DataChange, profiles: Path, out: Path) -> None:
    """A copy of `data/profiles` with fewer training examples.

    Args:
        change: what to change.
        profiles: `data/profiles`.
        out: the folder to write; files that stay as they are become links.

    Raises:
        DataError: the examples are missing or unreadable.
    """
    out.mkdir(parents=True)
    examples = tables.read(profiles / "examples.parquet")
    write_parquet(_fewer(examples, change.examples_share), out / "examples.parquet")
    for path in profiles.iterdir():
        if not (out / path.name).exists():
            (out / path.name).symlink_to(path.resolve())


def _fewer(examples: pa.Table, share: float) -> pa.Table:
    """A share of the training examples, drawn once: a smaller share is a part of a larger one."""
    drawn_M = np.random.default_rng(_DRAW_SEED).random(len(examples)) < share
    return examples.filter(pc.or_(pc.not_equal(examples.column("split"), "train"), pa.array(drawn_M)))
