"""`params.yaml` is strict: every mistake is one clear error that names its key."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mrse import config
from mrse.data.images import MAX_PIXELS
from mrse.errors import ConfigError

ROOT = Path(__file__).parents[2]
GOOD: dict[str, Any] = {"snapshot": {"end": "2026-03-15"}}


def with_value(dotted: str, value: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {"snapshot": dict(GOOD["snapshot"])}
    *sections, key = dotted.split(".")
    target = raw
    for section in sections:
        target = target.setdefault(section, {})
    target[key] = value
    return raw


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("gate.alhpa", 0.1, "unknown key"),
        ("gait", {}, "unknown key"),
        ("gate.alpha", 0.7, "less than 0.5"),
        ("gate.alpha", "often", "valid number"),
        ("gate.resamples", 3, "greater than or equal to 100"),
        ("gate.primary", "accuracy", "'recall'"),
        ("snapshot.source", "ftp", "'marketplace'"),
        ("snapshot.end", "yesterday", "valid date"),
        ("snapshot.days", 0, "greater than 0"),
        ("snapshot", {"end": "2026-03-15", "days": 1_000_000_000}, "earlier than the year 1"),
        ("marketplace.items", True, "should not be true or false"),
        ("build_index.search", {"ef": True}, "should not be true or false"),
        ("gate.guardrails", {"head": True}, "should not be true or false"),
        ("train.loss.matryoshka", [True], "should not be true or false"),
        ("build_index.verify.recall_k", [], "at least 1 item"),
        ("build_index", {"search": {"ef": 64}}, "search.ef = 64 is below 100, the largest of verify.recall_k"),
        ("marketplace.seed", -1, "greater than or equal to 0"),
        ("train.model.transformer_hidden", True, "should not be true or false"),
        ("train.learning_rate", float("nan"), "finite"),
        ("train.learning_rate", -1.0, "greater than 0"),
        ("train.model.experts", {"vbert": False, "ftatt": False, "light_bert": False}, "at least one expert"),
        ("train.loss", {"alpha": 0, "beta": 0}, "no loss"),
        ("train", {"loss": {"matryoshka": [64, 256]}}, "below model.dim = 256"),
        ("train", {"loss": {"matryoshka": [64, 32]}}, "is not ascending"),
        ("train.loss.mine", {"first": 9, "last": 3}, "are no ranks from 1"),
        ("train.loss.mine", {"first": 0, "last": 3}, "are no ranks from 1"),
        ("validate_logs.max_quarantined", 1.5, "less than or equal to 1"),
        ("validate_logs.max_image_pixels", 50_000_001, "less than or equal to 50000000"),
        ("swap_index.keep_last", 1, "greater than or equal to 2"),
        ("snapshot.files", [], "valid dictionary"),
    ],
)
def test_a_wrong_value_is_one_error_that_names_the_key(key: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(with_value(key, value), "params.yaml")
    message = str(caught.value)
    assert says in message
    assert key in message
    assert message.startswith("params.yaml: ")


def test_no_picture_passes_validation_that_later_stages_refuse() -> None:
    assert config.parse(with_value("validate_logs.max_image_pixels", MAX_PIXELS)).validate_logs.max_image_pixels


def test_every_error_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse({"snapshot": {"end": "2026-03-15", "dys": 3}, "gate": {"alpha": 2}})
    assert len(str(caught.value).splitlines()) == 2


def test_a_window_without_training_days_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no training day"):
        config.parse({"snapshot": {"end": "2026-03-15", "days": 5}})


def test_source_files_needs_items() -> None:
    with pytest.raises(ConfigError, match=r"files\.items"):
        config.parse({"snapshot": {"end": "2026-03-15", "source": "files"}})


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        config.load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid YAML"):
        config.load(tmp_path / "bad.yaml")
    (tmp_path / "twice.yaml").write_text("gate: {k: 1}\ntrain: {seed: 1, seed: 2}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"twice\.yaml: not valid YAML: key 'seed' stands twice(?s:.*)line 2"):
        config.load(tmp_path / "twice.yaml")
    (tmp_path / "template.yaml").write_text("snapshot: {end: {{ end }}}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"template\.yaml: not valid YAML"):
        config.load(tmp_path / "template.yaml")
    (tmp_path / "list.yaml").write_text("- 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected a mapping"):
        config.load(tmp_path / "list.yaml")


def test_the_environment_has_the_last_word_on_services(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = GOOD | {"services": {"milvus_uri": "http://a:1"}}
    assert config.parse(raw).services.milvus_uri == "http://a:1"
    monkeypatch.setenv("MRSE_MILVUS_URI", "http://b:2")
    assert config.parse(raw).services.milvus_uri == "http://b:2"
    assert config.parse(GOOD).services.milvus_uri == "http://b:2"


def test_params_yaml_hides_no_default() -> None:
    """DVC re-runs a stage on what `params.yaml` says, so every key must stand there."""
    path = ROOT / "params.yaml"
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    effective = config.load(path).model_dump(mode="json")

    def missing(want: dict[str, Any], have: dict[str, Any], prefix: str = "") -> list[str]:
        gaps = []
        for key, value in want.items():
            if key not in have:
                gaps.append(prefix + key)
            elif isinstance(value, dict) and isinstance(have[key], dict):
                gaps += missing(value, have[key], f"{prefix}{key}.")
        return gaps

    assert missing(effective, written) == []


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_ready_variants_load(path: Path) -> None:
    sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    config.load(path)
    assert set(sections) == set(config.Params.model_fields), "DVC wants every section, if only as {}"
    assert isinstance(sections["snapshot"]["end"], str), "DVC reads no bare dates"
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    for section, _, key in (name.partition(".") for stage in stages for name in stage["params"]):
        assert not key or key in sections[section], f"dvc.yaml depends on {section}.{key}"


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_ready_variants_set_nothing_that_is_so_anyway(path: Path) -> None:
    """But for the keys that DVC wants to find."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    wanted = {name for stage in stages for name in stage["params"]}

    def idle(written: dict[str, Any], set_: config.Section, default: config.Section, prefix: str = "") -> list[str]:
        found = []
        for key, value in written.items():
            mine, usual = getattr(set_, key), getattr(default, key)
            if isinstance(mine, config.Section):
                found += idle(value, mine, usual, f"{prefix}{key}.")
            elif mine == usual and prefix + key not in wanted:
                found.append(prefix + key)
        return found

    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert idle(written, config.load(path), config.parse(GOOD)) == []


def test_the_ready_ablations_stand_in_params_yaml_as_they_are() -> None:
    assert config.load(ROOT / "params.yaml").ablate.variants == config.ABLATIONS


def test_the_model_reads_all_of_a_history_and_without_the_long_part_what_is_newest() -> None:
    profiles, changes = config.ProfilesConfig(), config.ABLATIONS["inputs"]["no_long_history"]
    assert config.ModelConfig().history_length == profiles.history_length + profiles.long_history
    assert changes == {"model.history_length": profiles.history_length}


@pytest.mark.parametrize(
    ("variants", "says"),
    [
        ({"a": {"full": {}}}, "'full' is taken"),
        ({"a": {"x": {}}, "b": {"x": {}}}, "'x' is taken"),
        ({"a": {"a": {}}}, "'a' is taken"),
        ({"a": {"../x": {}}}, "'../x' is no name"),
    ],
)
def test_names_of_ablations(variants: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        config.parse(with_value("ablate.variants", variants))


def test_a_changed_section_is_validated_like_a_read_one() -> None:
    train = config.TrainConfig()
    other = config.changed(train, {"model.images": False, "seed": 3}, "here")
    assert (other.model.images, other.seed, other.loss) == (False, 3, train.loss)
    for changes, says in (
        ({"model.imagez": False}, "here: model.imagez: unknown key"),
        ({"modell.images": False}, "here: modell: unknown key"),
        ({"seed.images": False}, "here: seed.images: seed is a value"),
        ({"model.dim": "wide"}, "here: model.dim: Input should be a valid integer"),
    ):
        with pytest.raises(ConfigError, match=re.escape(says)):
            config.changed(train, changes, "here")
