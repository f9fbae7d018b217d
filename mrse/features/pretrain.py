"""A compact ViT, pre-trained on the shop's own catalogue: pictures against titles, categories and training queries.

For shops that name no image encoder. Nothing is downloaded and no labels are needed: what sellers write, and what
shoppers asked before they chose an item, teaches the encoder what pictures show; queries also name what a seller left
out. Symmetric InfoNCE as in CLIP (Radford et al. 2021), one loss per kind of text, where equal texts are positives of
each other. Colour must survive: nothing shifts hues, and the patch embedding
starts with the low frequencies of each colour channel, which the residual stream carries to the output.

Cost: about 100 ms a step of 128 pictures at 64 x 64 on 2 CPU cores; 400 steps take 40 s.
Shapes: P pictures, B batch, A those of a batch that were asked for, S side in pixels, V width; W words and G n-grams of
a text, U their width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mrse.config import ImageEncoderConfig
from mrse.device import CPU, fast_at_bfloat16
from mrse.features.encoder import ImageEncoder
from mrse.features.preprocess import Preprocessing
from mrse.features.subword import SubwordHasher
from mrse.features.text import normalise
from mrse.progress import track

_WORDS, _GRAMS, _BUCKETS, _TEXT_WIDTH = 12, 16, 10_000, 64
_CATEGORY_WEIGHT = 0.5
_WARMUP = 0.1
_WEIGHT_DECAY = 0.05
_SMALLEST_CROP = 0.7
_BRIGHTNESS = 0.1
_START_TEMPERATURE = 0.07
_MAX_SCALE = 100.0


def pretrain(
    pixels_PSSC: NDArray[np.uint8],
    titles: Sequence[str],
    categories: Sequence[str],
    queries: Sequence[Sequence[str]],
    config: ImageEncoderConfig,
    seed: int,
    device: torch.device = CPU,
) -> ImageEncoder:
    """Train a compact ViT on a catalogue, and freeze it.

    Args:
        pixels_PSSC: `(P, S, S, 3)` pictures; S is `config.image_size`.
        titles: P titles.
        categories: P categories; empty where unknown.
        queries: for each picture the training queries that led to its item; may be none.
        config: sizes and steps.
        seed: equal inputs and seed give an equal encoder on one kind of device.
        device: where it is trained, and where the encoder then is. A GPU runs the ViT in bfloat16 where that is fast.

    Raises:
        ConfigError: the sizes do not fit each other.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vit = _vit(config)
        if config.pretrain_steps and len(pixels_PSSC):
            _train(vit, pixels_PSSC, titles, categories, queries, config, seed, device)
    preprocessing = Preprocessing.squeeze(config.image_size)
    return ImageEncoder(vit, preprocessing, config.tokens, config.colour_levels, device=device)


def _vit(config: ImageEncoderConfig) -> transformers.ViTModel:
    settings = transformers.ViTConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=2 * config.dim,
    )
    vit = transformers.ViTModel(settings, add_pooling_layer=False)
    _start_with_colour(vit.embeddings.patch_embeddings.projection)
    return vit


def _start_with_colour(projection: nn.Conv2d) -> None:
    """Make the first 12 channels the mean and the three lowest frequencies (DCT) of red, green and blue."""
    side = projection.kernel_size[0]
    phase = (torch.arange(side) + 0.5) * math.pi / side
    waves = [torch.cos(u * phase)[:, None] * torch.cos(v * phase) for u, v in ((0, 0), (0, 1), (1, 0), (1, 1))]
    with torch.no_grad():
        for channel, (wave, colour) in enumerate((wave, colour) for wave in waves for colour in range(3)):
            if channel < projection.out_channels:
                projection.weight[channel] = 0.0
                projection.weight[channel, colour] = 2.0 / side * wave / wave.norm()


class _TextSide(nn.Module):
    """A bag of words from subwords; a learned weight lets brand names, which no picture shows, count less."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.grams = nn.Embedding(_BUCKETS + 1, _TEXT_WIDTH, padding_idx=0)
        self.weight = nn.Linear(_TEXT_WIDTH, 1)
        self.project = nn.Linear(_TEXT_WIDTH, dim)
        nn.init.normal_(self.grams.weight, std=0.3)
        with torch.no_grad():
            self.grams.weight[0] = 0.0

    def forward(self, ids_BWG: Tensor) -> Tensor:
        count_BW = (ids_BWG > 0).sum(dim=2)
        words_BWU = self.grams(ids_BWG).sum(dim=2) / count_BW.clamp(min=1)[..., None]
        weight_BW = self.weight(words_BWU).squeeze(2).masked_fill(count_BW == 0, -1e4).softmax(dim=1)
        pooled: Tensor = self.project((weight_BW[..., None] * words_BWU).sum(dim=1))
        return pooled


class _Matcher(nn.Module):
    """One loss: pictures against one kind of text."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.picture = nn.Linear(2 * dim, dim)
        self.text = _TextSide(dim)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(_START_TEMPERATURE)))

    def forward(self, picture_BV: Tensor, ids_BWG: Tensor, group_B: Tensor) -> Tensor:
        return multi_positive_nce(
            functional.normalize(self.picture(picture_BV), dim=1),
            functional.normalize(self.text(ids_BWG), dim=1),
            group_B,
            self.log_scale.exp().clamp(max=_MAX_SCALE),
        )


def multi_positive_nce(left_BV: Tensor, right_BV: Tensor, group_B: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE in which all rows of one group are positives of each other, with equal shares.

    Args:
        left_BV: normalised vectors of one side.
        right_BV: normalised vectors of the other; row i belongs to row i.
        group_B: integers; rows with an equal text have an equal one.
        scale: inverse temperature, a scalar.

    Returns:
        The mean of both directions, a scalar.
    """
    logits_BB = scale * left_BV @ right_BV.T
    same_BB = (group_B[:, None] == group_B[None, :]).to(logits_BB.dtype)
    target_BB = same_BB / same_BB.sum(dim=1, keepdim=True)
    return (functional.cross_entropy(logits_BB, target_BB) + functional.cross_entropy(logits_BB.T, target_BB)) / 2


def augment(values_BCSS: Tensor, generator: torch.Generator) -> Tensor:
    """Crop, mirror and brighten a little, each picture on its own; hues stay as they are."""
    size = len(values_BCSS)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator)

    zoom_B = uniform(_SMALLEST_CROP, 1.0)
    mirror_B = torch.where(uniform(0.0, 1.0) < 0.5, 1.0, -1.0)
    zero_B = torch.zeros(size)
    across_B, down_B = uniform(-1.0, 1.0) * (1 - zoom_B), uniform(-1.0, 1.0) * (1 - zoom_B)
    affine_B23 = torch.stack([zoom_B * mirror_B, zero_B, across_B, zero_B, zoom_B, down_B], dim=1).view(size, 2, 3)
    grid = functional.affine_grid(affine_B23, list(values_BCSS.shape), align_corners=False).to(values_BCSS.device)
    cropped_BCSS = functional.grid_sample(values_BCSS, grid, padding_mode="border", align_corners=False)
    light_B = uniform(1 - _BRIGHTNESS, 1 + _BRIGHTNESS).to(values_BCSS.device)
    return cropped_BCSS * light_B[:, None, None, None]


def _train(
    vit: transformers.ViTModel,
    pixels_PSSC: NDArray[np.uint8],
    titles: Sequence[str],
    categories: Sequence[str],
    queries: Sequence[Sequence[str]],
    config: ImageEncoderConfig,
    seed: int,
    device: torch.device,
) -> None:
    network: Any = vit  # its annotations hide `to`
    network.to(device).train()
    texts = [(_Texts(titles, device), 1.0), (_Texts(categories, device), _CATEGORY_WEIGHT)]
    asked = _Queries(queries, device, seed)
    matchers = nn.ModuleList(_Matcher(config.dim) for _ in (*texts, asked)).to(device)
    weights = [*vit.parameters(), *matchers.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=_WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, config.pretrain_steps))
    generator = torch.Generator().manual_seed(seed)
    bfloat16 = device.type == "cuda" and fast_at_bfloat16(device)
    batches = _batches(len(pixels_PSSC), config.pretrain_batch, config.pretrain_steps, seed)
    for rows_B in track(batches, "pre-training the image encoder", total=config.pretrain_steps, unit="step"):
        values_BCSS = torch.from_numpy(pixels_PSSC[rows_B]).to(device).permute(0, 3, 1, 2) / 127.5 - 1
        shown_BCSS = augment(values_BCSS, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            hidden_BLV = vit(pixel_values=shown_BCSS).last_hidden_state.float()
        picture_BV = torch.cat([hidden_BLV[:, 0], hidden_BLV[:, 1:].mean(dim=1)], dim=1)
        losses = [
            weight * matcher(picture_BV, *text.take(rows_B))
            for matcher, (text, weight) in zip(matchers[:-1], texts, strict=True)
        ]
        places_A, query_A = asked.draw(rows_B)
        if len(places_A) > 1:
            losses.append(matchers[-1](picture_BV[torch.from_numpy(places_A).to(device)], *asked.texts.take(query_A)))
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(losses).sum())
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()


class _Texts:
    """Texts as subword ids, and the group of equal ones that each belongs to."""

    def __init__(self, texts: Sequence[str], device: torch.device) -> None:
        self._ids_PWG = SubwordHasher(_BUCKETS).encode(texts, _WORDS, _GRAMS)
        self._group_P = np.unique([normalise(text) for text in texts], return_inverse=True)[1]
        self._device = device

    def take(self, rows_B: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        ids_BWG = torch.from_numpy(self._ids_PWG[rows_B].astype(np.int64))
        return ids_BWG.to(self._device), torch.from_numpy(self._group_P[rows_B]).to(self._device)


class _Queries:
    """The queries of each picture; a step sees one of each, at random."""

    def __init__(self, queries: Sequence[Sequence[str]], device: torch.device, seed: int) -> None:
        number: dict[str, int] = {}
        flat = [number.setdefault(query, len(number)) for asked in queries for query in asked]
        self.texts = _Texts(list(number), device)
        self._flat = np.array(flat, dtype=np.int64)
        self._size_P = np.array([len(asked) for asked in queries], dtype=np.int64)
        self._first_P = np.cumsum(self._size_P) - self._size_P
        self._random = np.random.default_rng(seed)

    def draw(self, rows_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which rows of a batch were asked for, `(A,)`, and the query drawn for each, `(A,)`."""
        places_A = np.flatnonzero(self._size_P[rows_B])
        asked_A = rows_B[places_A]
        return places_A, self._flat[self._first_P[asked_A] + self._random.integers(0, self._size_P[asked_A])]


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate: a linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / (_WARMUP * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _batches(rows: int, size: int, steps: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Batches of distinct rows, epoch by epoch; a batch never spans two epochs."""
    random = np.random.default_rng(seed)
    size = min(size, rows)
    order = np.zeros(0, dtype=np.int64)
    for _ in range(steps):
        if len(order) < size:
            order = random.permutation(rows)
        yield order[:size]
        order = order[size:]
