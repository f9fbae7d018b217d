"""`params.yaml` as typed, validated objects: one class per stage, and an unknown key is an error.

A stage reads its own section only (`load("params.yaml").gate`), so an edit of one section re-runs only that stage and
those after it. Nothing here reads data or imports a heavy library: loading costs milliseconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from math import isqrt
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from mrse.errors import ConfigError

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
# auto: a GPU where torch finds one, else the CPU. What a stage writes fits any device; embeddings differ in last bits,
# training and pre-training are other runs of the same kind.
Device = Literal["auto", "cpu", "cuda"]
MemorySize = Annotated[str, Field(pattern=r"^[1-9]\d*(\.\d+)?\s?([KMGT]i?B)$")]


class Section(BaseModel):
    """A part of `params.yaml`. Unknown keys, wrong types and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes true for 1; a person who writes it, or yes or on, for a number means something else."""
        if _holds_truth(value) and not _takes_truth(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("Input should not be true or false")
        return value


def _holds_truth(value: Any) -> bool:
    """Whether a value is true or false, or a list or mapping that holds one."""
    if isinstance(value, Mapping):
        return any(map(_holds_truth, value.values()))
    return any(map(_holds_truth, value)) if isinstance(value, list) else isinstance(value, bool)


def _takes_truth(wanted: Any) -> bool:
    """Whether some part of a type is `bool`, anything, or a section, which looks at its own values."""
    if wanted in (bool, Any) or (isinstance(wanted, type) and issubclass(wanted, Section)):
        return True
    return any(map(_takes_truth, get_args(wanted)))


class _Yaml(yaml.SafeLoader):
    """YAML in which a key stands once; of two, the plain loader takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue  # a key that is no word is refused below; several mappings may be merged in
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class FilesConfig(Section):
    """A shop's own tables: Parquet files or folders at any fsspec URI (`source: files`)."""

    items: str | None = None
    events: str | None = None
    judgments: str | None = None
    image_root: str | None = None


class SnapshotConfig(Section):
    """Which source and which window of days `[end - days, end)` (UTC) a run works on."""

    source: Literal["marketplace", "files"] = "marketplace"
    end: date
    days: Positive = 14
    files: FilesConfig = FilesConfig()
    # What sorting may hold in memory before it spills to disk.
    memory_limit: Annotated[str, Field(pattern=r"^[1-9]\d*(MB|GB|MiB|GiB)$")] = "1GB"

    @property
    def start(self) -> datetime:
        """First instant of the window, UTC."""
        return self.stop - timedelta(days=self.days)

    @property
    def stop(self) -> datetime:
        """First instant after the window, UTC."""
        return datetime(self.end.year, self.end.month, self.end.day, tzinfo=UTC)

    @model_validator(mode="after")
    def _window_fits_the_calendar(self) -> Self:
        if self.days >= self.end.toordinal():
            raise ValueError(f"days = {self.days} before {self.end} is earlier than the year 1")
        return self

    @model_validator(mode="after")
    def _files_has_items(self) -> Self:
        if self.source == "files" and self.files.items is None:
            raise ValueError("files.items: needed when source is 'files'")
        return self


class DriftConfig(Section):
    """Bounds on the change against the previous snapshot (population stability index, Jensen-Shannon)."""

    enabled: bool = True
    max_psi: PositiveFloat = 0.5
    max_js: Share = 0.3
    min_rows: Positive = 500  # fewer requests (or items) than this in either window: too few to tell drift from noise


class ValidateConfig(Section):
    """What stops a run and what is set aside (`validate_logs`).

    `max_quarantined` bounds, per table, the share of rows removed and the share of each repair. A reason named in
    `max_quarantined_by_reason` is judged by its own bound alone (docs/validation.md lists the reasons).
    """

    max_quarantined: Share = 0.05
    max_quarantined_by_reason: dict[str, Share] = {}
    min_items: Positive = 10
    max_id_chars: Positive = 256
    max_query_chars: Positive = 1000
    max_title_chars: Positive = 2000
    # Later stages refuse larger pictures (`mrse.data.images.MAX_PIXELS`): validation must not let one pass.
    max_image_pixels: Annotated[int, Field(gt=0, le=50_000_000)] = 50_000_000
    max_user_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    max_null_user_share: Share = 0.95  # above it (yet below 1: a shop without users) the report warns
    max_missing_days: NonNegative = 0
    drift: DriftConfig = DriftConfig()


class ProfilesConfig(Section):
    """How histories, item profiles, training examples and the time split are made (`build_profiles`)."""

    history_length: Positive = 20  # the newest engagements of any kind
    long_history: NonNegative = 10  # beside those, the newest of the older carts and orders; 0: none
    item_queries: Positive = 8
    co_items: Positive = 10
    co_window: Positive = 50  # an item pairs with so many that the shopper engaged with just before it
    warmup_days: NonNegative = 4
    refresh_days: Positive = 2
    valid_days: NonNegative = 1
    test_days: Positive = 2
    popularity_half_life_days: PositiveFloat = 7.0
    hard_negatives: NonNegative = 5
    low_relevance: Share = 0.35
    positive_grade: Share = 0.7
    negative_grade: Share = 0.2
    judged_valid_share: Share = 0.1
    judged_test_share: Share = 0.2
    action_weights: dict[Literal["click", "add_to_cart", "order"], PositiveFloat] = {
        "click": 1.0,
        "add_to_cart": 2.0,
        "order": 3.0,
    }
    memory_limit: MemorySize = "1GB"  # of the engine; beyond it, it spills to disk
    threads: NonNegative = 0  # 0: every core

    @model_validator(mode="after")
    def _grades_and_shares_fit(self) -> Self:
        if self.negative_grade >= self.positive_grade:
            raise ValueError("negative_grade must be below positive_grade")
        if self.judged_valid_share + self.judged_test_share > 1.0:
            raise ValueError("judged_valid_share + judged_test_share is more than 1")
        missing = [name for name in ("click", "add_to_cart", "order") if name not in self.action_weights]
        if missing:
            raise ValueError(f"action_weights: no weight for {', '.join(missing)}")
        return self


class ImageEncoderConfig(Section):
    """The frozen image encoder: any Hugging Face vision model, or a compact ViT pre-trained on the catalogue."""

    # A model's name on the hub, or a folder: of the keys below only `tokens` and `colour_levels` are then used.
    # null: pre-train one.
    name: str | None = None
    image_size: Positive = 64
    patch_size: Positive = 16
    dim: Positive = 128
    depth: Positive = 4
    heads: Positive = 4
    # Vectors kept of a picture: one for the whole and a square grid of averages, so 1 + a square number.
    tokens: Positive = 5
    # Beside what the network makes of an area come the shares of a palette of levels ** 3 colours; 0: none.
    colour_levels: Annotated[int, Field(ge=0, le=8)] = 5
    pretrain_steps: NonNegative = 400
    pretrain_batch: Positive = 128
    learning_rate: PositiveFloat = 2e-3

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if isqrt(self.tokens - 1) ** 2 != self.tokens - 1:
            raise ValueError(f"tokens = {self.tokens} is not 1 + a square number (1, 2, 5, 10, 17, ...)")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size = {self.image_size} is not a multiple of patch_size = {self.patch_size}")
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} is not a multiple of heads = {self.heads}")
        if self.colour_levels == 1:
            raise ValueError("colour_levels = 1 is a palette of one colour; use 0 for none, or 2 to 8")
        return self


class FeaturesConfig(Section):
    """Tokeniser, subword vectors and image features (`build_features`)."""

    seed: NonNegative = 0
    device: Device = "auto"  # for the image encoder
    # The least is the special tokens and the 256 bytes.
    vocab_size: Annotated[int, Field(ge=300)] = 6000
    # A Hugging Face text encoder by name or folder: its tokeniser is used here, its weights by `train`.
    text_encoder: str | None = None
    subword_buckets: Positive = 50_000
    subword_min_n: Positive = 3
    subword_max_n: Positive = 5
    image_encoder: ImageEncoderConfig = ImageEncoderConfig()

    @model_validator(mode="after")
    def _ngrams_fit(self) -> Self:
        if self.subword_min_n > self.subword_max_n:
            raise ValueError(f"subword_min_n = {self.subword_min_n} is above subword_max_n = {self.subword_max_n}")
        return self


class ExpertsConfig(Section):
    """Which experts are on. Switching one off is an ablation."""

    vbert: bool = True
    ftatt: bool = True
    light_bert: bool = True

    @model_validator(mode="after")
    def _one_is_on(self) -> Self:
        if not (self.vbert or self.ftatt or self.light_bert):
            raise ValueError("at least one expert must be on")
        return self


class ModelConfig(Section):
    """Sizes and switches of the towers."""

    dim: Positive = 256  # 128 loses a tenth of the recall that the experts have (lexical matches over 50,000 titles)
    hidden: Positive = 128  # of every expert's output; FtAtt's words have this width
    transformer_hidden: Positive | None = None  # inside VBert and Light-Bert; null: `hidden`
    heads: Positive = 4
    layers: Positive = 2  # of Light-Bert; unused with a Hugging Face text encoder
    vbert_layers: Positive = 1
    dropout: Share = 0.1
    query_length: Positive = 16
    title_length: Positive = 32
    experts: ExpertsConfig = ExpertsConfig()
    user_history: bool = True
    # Most items read of a shopper's history, its newest, in training and after. build_profiles keeps at most
    # history_length + long_history: more than that changes nothing, and at its history_length nothing of the long part,
    # which is older, is read.
    history_length: Positive = 30
    history_ages: bool = True  # whether how long ago something was counts in a shopper's history
    item_history: bool = True
    preferences: bool = True
    images: bool = True
    modality_dropout: Share = 0.1  # in training: items without their picture, and as many without text (VBert)
    history_dropout: Share = 0.2  # in training: shoppers and items treated as new
    word_dropout: Share = 0.1  # in training: word pieces hidden from the transformers and words from FtAtt

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.transformer_width % self.heads:
            name = "hidden" if self.transformer_hidden is None else "transformer_hidden"
            raise ValueError(f"{name} = {self.transformer_width} is not a multiple of heads = {self.heads}")
        return self

    @property
    def transformer_width(self) -> int:
        """Hidden size inside the two transformers."""
        return self.hidden if self.transformer_hidden is None else self.transformer_hidden


class RampConfig(Section):
    """A value that goes in a straight line from `start`, at the first step of a phase, to `end`, at its last."""

    start: Share = 1.0
    end: Share = 1.0


class MineConfig(Section):
    """From which ranks of the model's own list hard negatives are taken where the log has too few; 0 and 0: none."""

    first: NonNegative = 0  # 1 is the best item; what comes before is too often right
    last: NonNegative = 0

    @model_validator(mode="after")
    def _ranks_fit(self) -> Self:
        if (self.first == 0) != (self.last == 0) or self.first > self.last:
            raise ValueError(f"first = {self.first}, last = {self.last} are no ranks from 1 (or 0 and 0 for none)")
        return self


class LossConfig(Section):
    """Hybrid loss = alpha * MNSCE + beta * HNST."""

    alpha: Annotated[float, Field(ge=0.0)] = 1.0
    beta: Annotated[float, Field(ge=0.0)] = 0.5
    temperature: PositiveFloat = 0.05
    margin: PositiveFloat = 0.1
    logq: bool = True
    catalogue_negatives: NonNegative = 512
    hard_negatives: NonNegative = 2
    mine: MineConfig = MineConfig()
    hard_share: RampConfig = RampConfig()  # of beta, over phase 2: how much hard negatives count beside easy ones

    # Sizes of prefixes that must find items by themselves, ascending, each below model.dim; []: whole vectors only.
    matryoshka: list[Positive] = []
    matryoshka_weight: PositiveFloat = 1.0  # of MNSCE on each prefix; that on whole vectors weighs 1

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if self.alpha == 0 and self.beta == 0:
            raise ValueError("alpha and beta are both 0: there is no loss to train on")
        return self


class TrainConfig(Section):
    """The challenger: model, loss, two phases of training (`train`)."""

    seed: NonNegative = 0
    align_steps: NonNegative = 300
    fuse_steps: Positive = 600
    batch_size: Positive = 128
    # Rows that go through the experts at once, with the gradient of the whole batch: bounds the memory of a large batch
    # for about a third more time in the experts. 0: the whole batch.
    chunk_size: NonNegative = 0
    # The stage starts so many processes on this machine, each with its share of the cores and of every batch; where a
    # launcher such as torchrun starts the stage, the launcher decides. A killed run may go on with another number.
    processes: Positive = 1
    # How long a process waits for another before it gives up; longer than a validation, which the first does alone.
    process_timeout_seconds: PositiveFloat = 600.0
    learning_rate: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    warmup_share: Share = 0.05
    bank_refresh_steps: Positive = 200
    eval_every: Positive = 200
    checkpoint_every: Positive = 200
    device: Device = "auto"
    # Of the experts and the fusion while training; auto: bfloat16 where the device is fast at it.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    # torch.compile of the transformer layers; the numbers are those of the plain run, up to rounding
    compile: bool = False
    clip: PositiveFloat = 1.0  # largest norm of the gradient
    expert_learning_rate_share: Share = 0.3  # of learning_rate, for the experts while the fusion is trained
    # Of the experts' rate, for a given text encoder (`build_features.text_encoder`): what it knows must not be lost.
    text_encoder_learning_rate_share: Share = 0.05
    # Of the experts' rate, for FtAtt's n-grams: that words which look alike are alike must not be lost either.
    ngram_learning_rate_share: Share = 0.3
    # Largest, of the examples beside a log that fills a batch or more: judgments know no shopper.
    judged_share: Share = 0.25
    # Of the examples with a history, while the fusion is trained: the query loses about half of its words.
    vague_pairs: Share = 0.25
    self_pairs: Share = 0.25  # of a batch: pairs made from the shop's own titles (crops and typos), not from its logs
    keep: Literal["best", "last"] = "best"  # by recall on the validation requests; without any, the last
    valid_k: Positive = 50
    valid_requests: Positive = 1000  # at most so many validation requests are scored
    relevant_grade: Share = 0.7  # a judged item is relevant from this grade on; keep equal to gate.relevant_grade
    min_expert_share: Share = 0.01
    min_rank: PositiveFloat = 4.0  # effective rank of the item vectors below which they have collapsed
    # Uniformity of the item vectors above which they have collapsed: -0.2 is a mean cosine of about 0.95; 0: no bound.
    max_uniformity: Annotated[float, Field(le=0.0)] = -0.2
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _prefixes_fit(self) -> Self:
        sizes = self.loss.matryoshka
        if sizes != sorted(set(sizes)) or (sizes and sizes[-1] >= self.model.dim):
            raise ValueError(f"loss.matryoshka = {sizes} is not ascending and below model.dim = {self.model.dim}")
        return self


SliceName = Literal[
    "head", "torso", "tail", "anonymous", "new_shopper", "known_shopper", "cold_item", "no_image",
    "typo", "picture", "taste", "short", "long", "ordered",
]  # fmt: skip


class BudgetsConfig(Section):
    """Bounds on what is not relevance; `null`: measured, not judged. Shares and factors are of the champion's figure.

    All but the size of the index compare with the champion, so they are not judged while there is none.
    """

    coverage: PositiveFloat | None = 0.8  # at least: items that are in anybody's top 10
    gini: PositiveFloat | None = 0.05  # largest rise: concentration of the places in the top 10 on few items
    price: PositiveFloat | None = 0.2  # largest shift, either way: mean log price of the top 10
    rank: PositiveFloat | None = 0.5  # at least: effective rank of the item vectors
    latency_p50: PositiveFloat | None = 1.5  # at most: time to encode one query
    latency_p99: PositiveFloat | None = 2.0
    index_mib: PositiveFloat | None = 4096.0  # items x dims x 4 bytes, absolute


class ReplayConfig(Section):
    """How the log is replayed (mrse/evaluation/replay.py)."""

    # Last position of each run of positions that the shop fills alike; []: no two positions are alike.
    bands: list[Positive] = []
    max_weight: PositiveFloat = 100.0  # inverse propensities are clipped here

    @model_validator(mode="after")
    def _bands_ascend(self) -> Self:
        if self.bands != sorted(set(self.bands)):
            raise ValueError(f"bands = {self.bands} must ascend")
        return self


class GateConfig(Section):
    """When a challenger is worth an online A/B test (`gate`)."""

    primary: Literal["recall", "rele", "ndcg", "mrr", "hit"] = "recall"
    k: Positive = 50
    requests: Literal["auto", "events", "judgments"] = "auto"
    device: Device = "auto"  # for embedding, of both models the same
    relevant_grade: Share = 0.7
    delta: Annotated[float, Field(ge=0.0)] = 0.005
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    resamples: Annotated[int, Field(ge=100)] = 10_000
    min_requests: Positive = 100
    max_requests: Positive = 20_000
    seed: NonNegative = 0
    # Slice -> how far the primary metric may fall there (absolute): the lower bound of its lift must not pass it.
    guardrails: dict[SliceName, Annotated[float, Field(ge=0.0)]] = {"head": 0.02, "tail": 0.02}
    # Guardrails that this shop's data cannot define (head and tail without a query log) and that need not hold it up.
    not_applicable: list[SliceName] = []
    min_slice: Positive = 50
    # Fewer shoppers (or queries, where no shopper is known) than this give no interval, hence a HOLD.
    min_clusters: Annotated[int, Field(ge=5)] = 10
    # A query is vague when each of its words is in at least this share of the catalogue.
    vague_share: Share = 0.01
    budgets: BudgetsConfig = BudgetsConfig()
    replay: ReplayConfig = ReplayConfig()


class VerifyConfig(Section):
    """What a new collection must show before it may go live."""

    queries: Positive = 200
    # Depths at which recall against exact search is taken; the bounds hold at each.
    recall_k: Annotated[list[Positive], Field(min_length=1)] = [10, 100]
    min_recall_mean: Share = 0.95
    min_recall_p5: Share = 0.7
    # Stored vectors that are read back and compared with what was embedded.
    sample: Positive = 200
    # How slow the slowest of a hundred single queries may be; null: it is reported only.
    max_p99_ms: Annotated[float, Field(gt=0.0)] | None = None
    # Whether a collection that fails stays, for a day, to be looked at; else it is dropped.
    keep_failed: bool = False


BUCKETS = ("s3", "gs", "az", "abfs")  # schemes of object stores that a Milvus server may keep its files in
# Per index type: the parameters it takes when built and when searched, with their defaults.
INDEX_PARAMETERS: dict[str, dict[str, dict[str, int]]] = {
    "HNSW": {"build": {"M": 16, "efConstruction": 200}, "search": {"ef": 128}},
    "IVF_FLAT": {"build": {"nlist": 128}, "search": {"nprobe": 16}},
    "FLAT": {"build": {}, "search": {}},
    "DISKANN": {"build": {}, "search": {"search_list": 128}},  # a server with disk indexes enabled
    "AUTOINDEX": {"build": {}, "search": {}},
}
CANDIDATES = ("ef", "search_list")  # parameters of search that are the length of a candidate list


class IndexConfig(Section):
    """Type and parameters of the Milvus index (`build_index`); where they are not given, the type's defaults."""

    type: Literal["HNSW", "IVF_FLAT", "FLAT", "DISKANN", "AUTOINDEX"] = "HNSW"
    build: dict[str, Positive] = INDEX_PARAMETERS["HNSW"]["build"]
    search: dict[str, Positive] = INDEX_PARAMETERS["HNSW"]["search"]
    batch_size: Positive = 2000  # rows of one insert
    # Where the rows go as Parquet, for the server to import them: a prefix in its own bucket (`s3://bucket/import`), or
    # a folder that a server with local storage reads under the same path; null: they are inserted.
    bulk_folder: str | None = None
    # Items that are embedded, and kept in services.cache_dir, at a time: what a killed build may have to do again.
    shard_items: Positive = 4096
    device: Device = "auto"  # for embedding
    verify: VerifyConfig = VerifyConfig()

    @field_validator("bulk_folder")
    @classmethod
    def _folder_or_prefix(cls, folder: str | None) -> str | None:
        if folder is not None and ("::" in folder or ("://" in folder and folder.split("://")[0] not in BUCKETS)):
            raise ValueError(f"{folder} is neither a folder nor a prefix in a bucket ({'://, '.join(BUCKETS)}://)")
        return folder

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_type(cls, raw: Any) -> Any:
        known = INDEX_PARAMETERS.get(raw.get("type", "HNSW")) if isinstance(raw, dict) else None
        return raw if known is None else {**known, **raw}

    @model_validator(mode="after")
    def _parameters_fit_type(self) -> Self:
        for name, given in (("build", self.build), ("search", self.search)):
            known = INDEX_PARAMETERS[self.type][name]
            if set(given) != set(known):
                takes = ", ".join(known) or "no parameters"
                raise ValueError(f"{name}: {self.type} takes {takes}, got {', '.join(given) or 'none'}")
        return self

    @model_validator(mode="after")
    def _candidates_reach_recall(self) -> Self:
        depth = max(self.verify.recall_k)
        for name in CANDIDATES:
            if self.search.get(name, depth) < depth:
                raise ValueError(
                    f"search.{name} = {self.search[name]} is below {depth}, the largest of verify.recall_k: a search "
                    "that deep takes a longer list than the one to verify"
                )
        return self


class SwapConfig(Section):
    """Going live (`swap_index`)."""

    # Verified collections that are kept to roll back to, the live one included.
    keep_last: Annotated[int, Field(ge=2)] = 3
    smoke_queries: Positive = 5
    lease_seconds: Positive = 120


class ServicesConfig(Section):
    """Where Milvus, MLflow and the run-to-run state live. The environment has the last word."""

    milvus_uri: str = ".mrse/milvus.db"
    mlflow_uri: str = "sqlite:///.mrse/mlflow.db"
    state_dir: str = ".mrse/state"
    cache_dir: str = ".mrse/cache"

    def resolved(self) -> ServicesConfig:
        """These settings with `MRSE_MILVUS_URI`, `MLFLOW_TRACKING_URI`, `MRSE_STATE_DIR`, `MRSE_CACHE_DIR` applied."""
        return ServicesConfig(
            milvus_uri=os.environ.get("MRSE_MILVUS_URI") or self.milvus_uri,
            mlflow_uri=os.environ.get("MLFLOW_TRACKING_URI") or self.mlflow_uri,
            state_dir=os.environ.get("MRSE_STATE_DIR") or self.state_dir,
            cache_dir=os.environ.get("MRSE_CACHE_DIR") or self.cache_dir,
        )

    def under(self, workspace: Path) -> ServicesConfig:
        """These settings with local files and folders resolved against `workspace`, whatever the current folder is."""

        def place(value: str) -> str:
            prefix = "sqlite:///" if value.startswith("sqlite:///") else ""
            if "://" in value and not prefix:
                return value
            return prefix + str((workspace / value[len(prefix) :]).resolve())

        return ServicesConfig(**{name: place(value) for name, value in self})


# Group -> variant -> what it changes against the full model (docs/experiments.md).
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "experts": {
        "no_vbert": {"model.experts.vbert": False},
        "no_ftatt": {"model.experts.ftatt": False},
        "no_light_bert": {"model.experts.light_bert": False},
        "one_transformer": {
            "model.experts.ftatt": False,
            "model.experts.light_bert": False,
            "model.vbert_layers": 2,
            "model.transformer_hidden": None,
            "model.hidden": "match",
        },
        "one_text_transformer": {
            "model.experts.vbert": False,
            "model.experts.ftatt": False,
            "model.transformer_hidden": None,
            "model.hidden": "match",
        },
    },
    "inputs": {
        "no_user_history": {"model.user_history": False},
        "history_5": {"model.history_length": 5},
        "history_10": {"model.history_length": 10},
        "no_long_history": {"model.history_length": 20},  # build_profiles.history_length
        "no_history_ages": {"model.history_ages": False},
        "no_item_history": {"model.item_history": False},
        "no_preferences": {"model.preferences": False},
        "no_images": {"model.images": False},
        "text_only": {
            "model.images": False,
            "model.user_history": False,
            "model.item_history": False,
            "model.preferences": False,
        },
        "light_bert_text": {
            "model.experts.vbert": False,
            "model.experts.ftatt": False,
            "model.images": False,
            "model.user_history": False,
            "model.item_history": False,
            "model.preferences": False,
        },
    },
    "loss": {
        "mnsce_only": {"loss.beta": 0.0},
        "hnst_only": {"loss.alpha": 0.0, "loss.beta": 1.0},
        "no_logq": {"loss.logq": False},
        "alpha_0.5": {"loss.alpha": 0.5},
        "alpha_2": {"loss.alpha": 2.0},
        "beta_0.25": {"loss.beta": 0.25},
        "beta_1": {"loss.beta": 1.0},
        "beta_2": {"loss.beta": 2.0},
        "margin_0.05": {"loss.margin": 0.05},
        "margin_0.2": {"loss.margin": 0.2},
    },
    "negatives": {
        "hard_1": {"loss.hard_negatives": 1},
        "hard_4": {"loss.hard_negatives": 4},
        "easy_first": {"loss.hard_share.start": 0.0},
        "catalogue_0": {"loss.catalogue_negatives": 0},
        "catalogue_128": {"loss.catalogue_negatives": 128},
        "catalogue_2048": {"loss.catalogue_negatives": 2048},
    },
    "data": {
        "examples_25": {"data.examples_share": 0.25},
        "examples_50": {"data.examples_share": 0.5},
    },
    "size": {"dim_64": {"model.dim": 64}, "dim_128": {"model.dim": 128}},
}
FULL = "full"
_VARIANT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


class AblateConfig(Section):
    """What `mrse ablate` trains beside the full model, which is the section `train` as it stands.

    A variant's keys are those of `train`, dotted, as in `dvc exp run -S train.model.images=false`; one more changes the
    data (`DataChange`): `data.examples_share`. `model.hidden: match` takes the size that gives the variant as many
    parameters as the full model.
    """

    variants: dict[str, dict[str, dict[str, Any]]] = ABLATIONS

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [*self.variants, *(name for group in self.variants.values() for name in group)]
        for name in names:
            if name == FULL or names.count(name) > 1:
                raise ValueError(f"variants: {name!r} is taken; groups and variants need names of their own")
            if not _VARIANT_NAME.fullmatch(name):
                raise ValueError(f"variants: {name!r} is no name: use a to z, 0 to 9, '.', '_' and '-'")
        return self

    def choose(self, only: Sequence[str]) -> dict[str, str]:
        """The variants to train, each with its group, in the order of `variants`.

        Args:
            only: names of variants or groups, or `full`, which is trained in any case; empty: all.

        Raises:
            ConfigError: an unknown name.
        """
        group_of = {name: group for group, variants in self.variants.items() for name in variants}
        unknown = [name for name in only if name not in {FULL, *group_of, *self.variants}]
        if unknown:
            groups = "; ".join(f"{group}: {', '.join(names)}" for group, names in self.variants.items())
            named = ", ".join(map(repr, unknown))
            raise ConfigError(f"no variant or group {named} in ablate.variants of params.yaml, which has {groups}")
        return {name: group for name, group in group_of.items() if not only or name in only or group in only}


class DataChange(Section):
    """What a variant of `mrse ablate` changes in the data that it is trained on."""

    examples_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # of the training examples, drawn once


class MarketplaceConfig(Section):
    """The simulated shop (`source: marketplace`). Everything follows from `seed` and the day."""

    seed: NonNegative = 7
    opens: date = date(2026, 1, 1)
    items: Positive = 5_000
    shoppers: Positive = 2_000
    events_per_day: Positive = 21_500
    image_size: Positive = 64
    catalogue: str | None = None
    catalogue_images: str | None = None
    labels: dict[Literal["type", "colour", "pattern", "material", "brand", "gender", "usage"], str] = {
        "type": "article_type",
        "colour": "colour",
        "usage": "usage",
    }
    new_items_per_day: Share = 0.002
    new_shoppers_per_day: Share = 0.005
    missing_attribute: Share = 0.45
    misspelt_title: Share = 0.03
    stuffed_title: Share = 0.08  # titles with praise, or with colours and types that the item does not have
    missing_picture: Share = 0.03
    typo_query: Share = 0.16
    vague_query: Share = 0.4
    anonymous_sessions: Share = 0.15  # sessions of shoppers who are not logged in
    exploration: Share = 0.15  # slots that the shop fills from beyond its own ranking


class Params(Section):
    """The whole of `params.yaml`."""

    snapshot: SnapshotConfig
    marketplace: MarketplaceConfig = MarketplaceConfig()
    validate_logs: ValidateConfig = ValidateConfig()
    build_profiles: ProfilesConfig = ProfilesConfig()
    build_features: FeaturesConfig = FeaturesConfig()
    train: TrainConfig = TrainConfig()
    gate: GateConfig = GateConfig()
    build_index: IndexConfig = IndexConfig()
    swap_index: SwapConfig = SwapConfig()
    ablate: AblateConfig = AblateConfig()
    services: Annotated[ServicesConfig, Field(validate_default=True)] = ServicesConfig()

    @field_validator("services")
    @classmethod
    def _environment(cls, value: ServicesConfig) -> ServicesConfig:
        return value.resolved()

    @model_validator(mode="after")
    def _split_fits_window(self) -> Self:
        split = self.build_profiles
        used = split.warmup_days + split.valid_days + split.test_days
        if used >= self.snapshot.days:
            raise ValueError(
                f"build_profiles: warmup_days + valid_days + test_days = {used} leaves no training day "
                f"in a window of snapshot.days = {self.snapshot.days}"
            )
        return self


def load(path: str | Path = "params.yaml") -> Params:
    """Read and validate a parameter file.

    Args:
        path: a YAML file with the sections of `Params`.

    Raises:
        ConfigError: see `read`; or an unknown key, a wrong type or an impossible value. The message names every
            offending key.
    """
    return parse(read(path), str(path))


def read(path: str | Path) -> Any:
    """What a parameter file holds, not yet validated.

    Raises:
        ConfigError: the file is missing, is not YAML, or has a key twice.
    """
    path = Path(path)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Yaml)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run from the project's folder or name the file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None


def parse(raw: Any, where: str = "params") -> Params:
    """Validate parameters that are already in memory; see `load`."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected a mapping of sections, got {type(raw).__name__}")
    return _validated(Params, raw, where)


S = TypeVar("S", bound=Section)


def changed(section: S, changes: Mapping[str, Any], where: str) -> S:
    """A section with some values changed, validated like one that was read.

    Args:
        section: what the changes start from.
        changes: dotted keys within the section, such as `{"model.images": False}`.
        where: what an error names.

    Raises:
        ConfigError: an unknown key, a wrong type or an impossible value; the message names every offending key.
    """
    raw: dict[str, Any] = section.model_dump()
    for dotted, value in changes.items():
        *path, key = dotted.split(".")
        target: Any = raw
        for part in path:
            target = target.setdefault(part, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise ConfigError(f"{where}: {dotted}: {'.'.join(path)} is a value, not a section")
        target[key] = value
    return _validated(type(section), raw, where)


def _validated(section: type[S], raw: Any, where: str) -> S:
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(where, dict(e)) for e in error.errors())) from None


def _explain(where: str, error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "(whole file)"
    if error["type"] == "extra_forbidden":
        return f"{where}: {key}: unknown key; remove it or check its spelling"
    message = str(error["msg"]).removeprefix("Value error, ")
    value = "" if error["type"] == "missing" or not error["loc"] else f" (got {error['input']!r})"
    return f"{where}: {key}: {message}{value}"
