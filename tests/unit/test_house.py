"""The house stands as DESIGN says: imports run downwards, and pipeline, components and extras agree."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path, PurePath

import pytest
import yaml
from packaging.requirements import Requirement

from mrse import layout

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

# What each room of the library may import of the others; the ground is free to all.
GROUND = {"config", "device", "errors", "progress", "jsonfile", "layout", "scratch"}
MAY_IMPORT = {
    "data": set(),
    "validation": {"data"},
    "profiles": {"data"},
    "features": {"data"},
    "model": {"features", "profiles", "data"},
    "training": {"model", "features", "profiles", "data"},
    "tracking": set(),
    "evaluation": {"training", "model", "features", "profiles", "data", "tracking"},
    "index": {"training", "model", "features", "profiles", "data", "tracking"},
    "serving": {"index", "evaluation", "model", "features", "profiles", "data", "tracking"},
    "component": set(),
}
FOREIGN = {"airflow", "dvc", "kubernetes", "components", "dags"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "mrse" and len(parts) > 1 else None


@pytest.mark.parametrize("path", sorted((ROOT / "mrse").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    modules = imports(path)
    assert not {module for module in modules if module.split(".")[0] in FOREIGN}
    here = path.relative_to(ROOT / "mrse").parts[0].removesuffix(".py")
    if here in {"cli", "__init__"} | GROUND:
        return
    allowed = MAY_IMPORT[here] | GROUND | {here}
    rooms = {p.name.removesuffix(".py") for p in (ROOT / "mrse").iterdir()}
    assert {room(module) for module in modules} & rooms <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_benchmarks_use_what_there_is(path: Path) -> None:
    """CI runs none of them: a name that has moved would be found by who needs the figures."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in nodes if node.module and node.module.split(".")[0] in {"mrse", "components", "tests"}]
    for node in ours:
        module = importlib.import_module(node.module)
        for alias in node.names:
            if not hasattr(module, alias.name):
                importlib.import_module(f"{node.module}.{alias.name}")


def test_components_know_no_scheduler() -> None:
    for path in (ROOT / "components").rglob("*.py"):
        assert not {module.split(".")[0] for module in imports(path)} & {"airflow", "dags", "kubernetes"}, path


def test_nothing_is_unpickled() -> None:
    """Weights, checkpoints and packages are safetensors, JSON and ONNX: none of them runs code when it is read."""
    for path in [*(ROOT / "mrse").rglob("*.py"), *(ROOT / "components").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"import (cloud)?pickle|import (dill|joblib)|\btorch\.load\(|allow_pickle", text), path
        for arguments in re.findall(r"Model\.from_pretrained\(([^)]*\)?[^)]*)\)", text):
            assert "use_safetensors=True" in arguments, path


def strings(path: Path) -> set[str]:
    """The string literals of a file; not the parts of formatted ones."""
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_the_paths_of_a_workspace_are_spelt_once() -> None:
    paths = {path.as_posix() for path in vars(layout).values() if isinstance(path, PurePath)}
    outs = [out for stage in STAGES.values() for kind in ("outs", "metrics") for out in stage.get(kind, [])]
    declared = [out if isinstance(out, str) else next(iter(out)) for out in outs]
    made_by_commands = {path for path in paths if not any(f"{path}/".startswith(f"{out}/") for out in declared)}
    assert made_by_commands == {layout.ABLATION.as_posix(), layout.CARD.as_posix()}
    for path in [*(ROOT / "mrse").rglob("*.py"), *(ROOT / "components").rglob("*.py")]:
        if path.name != "layout.py":
            assert not {text for text in strings(path) if any(f"{text}/".startswith(f"{p}/") for p in paths)}, path


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("mrse.config", {"numpy", "pyarrow", "torch", "mlflow"}),
        ("mrse.data.contract", {"torch", "great_expectations", "mlflow", "pymilvus"}),
        ("mrse.profiles", {"torch", "great_expectations", "mlflow", "pymilvus"}),
        ("mrse.model.loss", {"great_expectations", "mlflow", "pymilvus", "ibis", "duckdb"}),
        ("mrse.cli", {"torch", "great_expectations", "mlflow", "pymilvus", "pyarrow"}),
    ],
)
def test_light_modules_pull_nothing_heavy(module: str, banned: set[str]) -> None:
    code = f"import sys, {module}; print(','.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not banned & set(done.stdout.strip().split(","))


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_its_component(stage: str) -> None:
    spec = yaml.safe_load((ROOT / "components" / stage / "component.yaml").read_text(encoding="utf-8"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert spec["name"] == stage
    assert spec["command"] == STAGES[stage]["cmd"].split()
    assert spec["image"] == f"mrse-{stage.replace('_', '-')}"
    assert set(spec["extras"]) <= set(extras)
    assert {"cpu", "memory"} <= set(spec["resources"])
    assert spec["pool"]
    assert spec["retries"] >= 0
    assert spec["timeout_minutes"] > 0


# Import names that differ from their distribution, and those that come with another distribution as its own need.
DISTRIBUTION = {
    "PIL": "pillow",
    "grpc": "pymilvus",
    "ibis": "ibis-framework",
    "requests": "mlflow",
    "sqlalchemy": "mlflow",
    "yaml": "pyyaml",
}


def source(module: str) -> Path | None:
    """The file of a module of this repository."""
    place = ROOT / Path(*module.split("."))
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


def reached(module: str) -> set[str]:
    """Top-level third-party packages that a module of this repository imports, itself or through others."""
    todo, seen, foreign = [module], set(), set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        path = source(name)
        if name.split(".")[0] not in {"mrse", "components"}:
            foreign.add(name.split(".")[0])
        elif path is not None:  # else a name inside a module, whose own file is looked at anyway
            todo += [name.rpartition(".")[0]] if "." in name else []
            todo += imports(path)
    return foreign - set(sys.stdlib_module_names)


def installed_by(extras: list[str]) -> set[str]:
    """The distributions named by the base dependencies and some extras, those extras' extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    todo = [Requirement(line) for line in [*project["dependencies"], f"mrse[{','.join(extras)}]"]]
    found = set()
    while todo:
        requirement = todo.pop()
        if requirement.name == "mrse":
            lines = [line for extra in requirement.extras for line in project["optional-dependencies"][extra]]
            todo += map(Requirement, lines)
        found.add(requirement.name)
    return found


@pytest.mark.parametrize("stage", [*STAGES, "ablate"])
def test_the_extras_of_a_component_are_all_it_needs(stage: str) -> None:
    spec = yaml.safe_load((ROOT / "components" / stage / "component.yaml").read_text(encoding="utf-8"))
    needed = {DISTRIBUTION.get(name, name.replace("_", "-")) for name in reached(f"components.{stage}.__main__")}
    assert "pydantic" in needed, "the walk reaches the library"
    assert needed <= installed_by(spec["extras"])


@pytest.mark.parametrize(
    ("module", "extra", "unused"),
    [
        ("mrse.model.export", "export", set()),
        ("mrse.evaluation.ablation_report", "ablate", set()),
        ("mrse.model.exported", "exported", {"transformers"}),  # for a pretrained tokeniser, before the export
    ],
)
def test_the_extra_of_a_command_is_all_it_needs(module: str, extra: str, unused: set[str]) -> None:
    needed = {DISTRIBUTION.get(name, name.replace("_", "-")) for name in reached(module)}
    assert "pyarrow" in needed, "the walk reaches the library"
    assert needed - unused <= installed_by([extra])


def test_no_component_without_a_stage() -> None:
    folders = {path.parent.name for path in (ROOT / "components").glob("*/component.yaml")}
    assert folders == {*STAGES, "ablate"}, "of mrse_experiments"


@pytest.mark.parametrize("stage", STAGES)
def test_a_component_says_what_it_takes(stage: str, tmp_path: Path) -> None:
    """Run alone in an empty folder, a component names the missing file and exits 1 without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", f"components.{stage}", "--workspace", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "params.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_threads_wait_without_spinning_in_every_stage() -> None:
    """The policy is read when torch is imported: nothing that a stage imports before `mrse.component` may bring it."""
    code = "import os, sys; import mrse.component; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["False", "PASSIVE"]
    for main in sorted((ROOT / "components").glob("*/__main__.py")):
        imports = [node for node in ast.parse(main.read_text()).body if isinstance(node, ast.ImportFrom)]
        first = next(node for node in imports if (node.module or "").startswith("mrse"))
        assert "mrse.component" in (first.module, f"{first.module}.{first.names[0].name}"), main
