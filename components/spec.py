"""The pipeline as data: `dvc.yaml` says which stages there are, `components/<stage>/component.yaml` how each is run.

What schedules the stages reads these and nothing else, so a stage added to `dvc.yaml` is a task of tomorrow's run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mrse.errors import DataError


@dataclass(frozen=True)
class Told:
    """A value that a stage's outputs tell: `key` of the JSON file `file`."""

    file: str
    key: str


@dataclass(frozen=True)
class Decision(Told):
    """What a stage decides; the stages that read `file` go on only where it is one of `goes_on`."""

    goes_on: tuple[str, ...]


@dataclass(frozen=True)
class Component:
    """One `component.yaml`.

    Attributes:
        name: of the stage.
        image: the image's name, without registry and digest.
        command: what the stage runs, as in `dvc.yaml`.
        extras: of `pyproject.toml`, what the image installs.
        resources: `cpu` and `memory` as Kubernetes writes them, and `gpu` where the stage uses them.
        node_selector: labels of the nodes that its pod may run on; empty: any.
        tolerations: taints of nodes that its pod puts up with: `key`, `operator`, `value`, `effect`.
        retries: how often a failed task is tried again.
        timeout_minutes: after which a task is stopped.
        pool: Airflow's pool, which bounds how many such tasks run at once.
        decides: the stage's decision, where it makes one.
        makes_run: the id of the MLflow run, where it makes one.
        updates: names of the Airflow assets that the stage updates.
        reads: what a component that is no stage pulls before it runs; a stage's inputs stand in `dvc.yaml`.
        report: the page that tells why the stage failed, where it writes one.
    """

    name: str
    image: str
    command: tuple[str, ...]
    extras: tuple[str, ...]
    resources: dict[str, str]
    retries: int
    timeout_minutes: int
    pool: str
    decides: Decision | None = None
    makes_run: Told | None = None
    updates: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    report: str | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Stage:
    """One stage of `dvc.yaml`, with the stages that must be done before it and are not before one another."""

    name: str
    desc: str
    after: tuple[str, ...] = ()
    reads: tuple[str, ...] = field(default=(), repr=False)
    writes: tuple[str, ...] = field(default=(), repr=False)


def component(pipeline: Path, stage: str) -> Component:
    """Read one `component.yaml`.

    Raises:
        DataError: there is none, or it has a wrong or missing key.
    """
    path = pipeline / "components" / stage / "component.yaml"
    if not path.is_file():
        raise DataError(f"{path}: no such file; every stage of dvc.yaml has a component")
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    lists = {key: tuple(raw[key]) for key in ("command", "extras", "updates", "reads", "tolerations") if key in raw}
    try:
        decides = {**raw["decides"], "goes_on": tuple(raw["decides"]["goes_on"])} if "decides" in raw else None
        told = {
            "decides": None if decides is None else Decision(**decides),
            "makes_run": Told(**raw["makes_run"]) if "makes_run" in raw else None,
        }
        return Component(**{**raw, **lists, **told})
    except (TypeError, KeyError) as error:
        raise DataError(f"{path}: wrong or missing key: {error}") from None


def stages(pipeline: Path) -> dict[str, Stage]:
    """The stages of `dvc.yaml` by name, every one after those it needs."""
    path = pipeline / "dvc.yaml"
    raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
    plain = {name: _stage(name, entry) for name, entry in raw.items()}
    needs = {name: {other for other in plain if _feeds(plain[other], stage)} for name, stage in plain.items()}
    ordered = _in_order(needs, path)
    every: dict[str, set[str]] = {}
    for name in ordered:
        every[name] = needs[name].union(*(every[before] for before in needs[name]))
    return {
        name: Stage(
            name,
            plain[name].desc,
            tuple(b for b in ordered if b in needs[name] and not any(b in every[other] for other in needs[name])),
            plain[name].reads,
            plain[name].writes,
        )
        for name in ordered
    }


def needed(found: dict[str, Stage], reads: Sequence[str]) -> dict[str, Stage]:
    """Of all stages, in order, those that make some files and those before them."""
    reader = Stage("", "", reads=tuple(reads))
    wanted = {name for name, stage in found.items() if _feeds(stage, reader)}
    for name in reversed(found):
        if name in wanted:
            wanted |= set(found[name].after)
    return {name: stage for name, stage in found.items() if name in wanted}


def _stage(name: str, entry: dict[str, Any]) -> Stage:
    written = [*entry.get("outs", []), *entry.get("metrics", []), *entry.get("plots", [])]
    names = tuple(out if isinstance(out, str) else str(next(iter(out))) for out in written)
    return Stage(name, entry.get("desc", ""), (), tuple(entry.get("deps", [])), names)


def _feeds(before: Stage, after: Stage) -> bool:
    """Whether a file that one stage writes lies in, on or above a path that the other reads."""
    pairs = ((f"{out}/", f"{dep}/") for out in before.writes for dep in after.reads)
    return any(out.startswith(dep) or dep.startswith(out) for out, dep in pairs)


def _in_order(needs: dict[str, set[str]], path: Path) -> list[str]:
    done: list[str] = []
    while len(done) < len(needs):
        ready = [name for name, before in needs.items() if name not in done and before <= set(done)]
        if not ready:
            raise DataError(f"{path}: stages need each other in a circle: {', '.join(sorted(set(needs) - set(done)))}")
        done += ready
    return done
