"""What a vision model wants done to a picture before it sees it: size, crop and scale of values.

Read from the `preprocessor_config.json` that every Hugging Face vision model brings. The work is done by Pillow, and
agrees with the model's own processor (a test compares them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mrse.errors import ConfigError

_BILINEAR = 2


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the model's input.

    Attributes:
        height, width: pixels that the model sees.
        shortest: the shorter side is scaled to this before the centre is cut out; None squeezes the whole picture.
        resample: Pillow's number of the filter.
        scale, shift: per channel, `input = value * scale - shift` for values 0 to 255.
        raw: the settings as the model's author wrote them.
    """

    height: int
    width: int
    shortest: int | None
    resample: int
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    raw: dict[str, Any]

    @classmethod
    def parse(cls, raw: dict[str, Any], where: str) -> Preprocessing:
        """Understand the settings of `preprocessor_config.json`.

        Raises:
            ConfigError: a size is missing or of an unknown form.
        """
        size = _sizes(raw.get("size"), where)
        crop = _sizes(raw["crop_size"], where) if raw.get("do_center_crop") and "crop_size" in raw else None
        shortest = size.get("shortest_edge")
        if shortest is not None and "crop_pct" in raw:  # ConvNeXt: the size is that of the crop
            crop, shortest = {"height": shortest, "width": shortest}, int(shortest / raw["crop_pct"])
        final = crop or ({"height": shortest, "width": shortest} if shortest else size)
        if "height" not in final or "width" not in final:
            raise ConfigError(
                f"{where}: size = {raw.get('size')!r} says no height and width; use a square vision model"
            )
        factor = float(raw.get("rescale_factor", 1 / 255)) if raw.get("do_rescale", True) else 1.0
        normalised = raw.get("do_normalize", True)
        mean = raw.get("image_mean") or [0.5] * 3 if normalised else [0.0] * 3
        std = raw.get("image_std") or [0.5] * 3 if normalised else [1.0] * 3
        return cls(
            height=int(final["height"]),
            width=int(final["width"]),
            shortest=int(shortest) if shortest and crop else None,
            resample=int(raw.get("resample", _BILINEAR)),
            scale=tuple(factor / s for s in std),
            shift=tuple(m / s for m, s in zip(mean, std, strict=True)),
            raw=raw,
        )

    @classmethod
    def squeeze(cls, size: int) -> Preprocessing:
        """The whole picture squeezed to a square, values -1 to 1: nothing at the edges is lost."""
        raw = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": size, "width": size},
            "resample": _BILINEAR,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }
        return cls.parse(raw, "image_encoder")

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """One RGB picture as `(height, width, 3)` values; safe to call from threads."""
        if self.shortest is not None:
            image = self._crop(_resize(image, _shortest(image.size, self.shortest), self.resample))
        return np.asarray(_resize(image, (self.width, self.height), self.resample))

    def _crop(self, image: Image.Image) -> Image.Image:
        left, top = (image.width - self.width) // 2, (image.height - self.height) // 2
        return image.crop((left, top, left + self.width, top + self.height))


def _sizes(value: Any, where: str) -> dict[str, int]:
    if isinstance(value, int):
        return {"height": value, "width": value}
    if isinstance(value, dict) and value:
        return value
    raise ConfigError(f"{where}: size = {value!r} in the preprocessor settings is neither a number nor a mapping")


def _shortest(size: tuple[int, int], shortest: int) -> tuple[int, int]:
    width, height = size
    if width <= height:
        return shortest, int(shortest * height / width)
    return int(shortest * width / height), shortest


def _resize(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    # The gap lets Pillow shrink a large photo coarsely first: several times faster, the same to the eye.
    return image if image.size == size else image.resize(size, Image.Resampling(resample), reducing_gap=3.0)
