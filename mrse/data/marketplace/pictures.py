"""Pictures of invented items, drawn from their attributes: a picture tells what its title may have forgotten.

The type gives the silhouette; colour and pattern fill it, a little different on every item; the material is a faint
texture. About 1.5 ms a picture; a picture depends on its item alone.
Arrays: H x W = P pixels at twice the final size, h x w at the final size, 3 channels.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from mrse.config import MarketplaceConfig
from mrse.data.marketplace import draws, lexicon
from mrse.data.marketplace.catalogue import Catalogue
from mrse.data.marketplace.silhouettes import BODY, DARK, GROUND, METAL, OUTLINES, PALE, SHADE, TINT
from mrse.progress import track

Plane = npt.NDArray[np.float32]
_OVERSAMPLED = 2
_ZIP_TIME = (2026, 1, 1, 0, 0, 0)  # a fixed one, so that equal pictures give equal archives
_PALE_COLOURS = frozenset({"white", "beige", "yellow", "pink"})
_SECOND_FOR_PALE = ((32, 34, 60), (178, 40, 50), (40, 92, 160), (60, 60, 62))
_SECOND_FOR_DEEP = ((245, 243, 236), (245, 243, 236), (236, 214, 150), (226, 228, 234))
_SILVER, _GOLD = (186, 190, 198), (212, 168, 62)


@dataclass(frozen=True)
class Look:
    """What a picture shows: names from the lexicon."""

    type: str
    colour: str
    pattern: str
    material: str


def draw_pictures(config: MarketplaceConfig, catalogue: Catalogue, path: Path) -> None:
    """Write one PNG per item that has a picture into an uncompressed zip.

    Args:
        config: the shop; `image_size` is the width and height in pixels.
        catalogue: an invented one.
        path: the zip file, replaced in one move.
    """
    names = catalogue.table["image"].to_pylist()
    temporary = path.with_name(f".{path.name}.tmp")
    painter = Painter(config.image_size)
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for row, name in enumerate(track(names, "drawing pictures", unit="picture")):
            if name is not None:
                entry = zipfile.ZipInfo(name, _ZIP_TIME)
                archive.writestr(entry, painter.png(look_of(catalogue, row), config.seed, row))
    temporary.replace(path)


def look_of(catalogue: Catalogue, row: int) -> Look:
    """What the picture of an item shows."""

    def name(attribute: str, default: str) -> str:
        code = int(catalogue.codes(attribute)[row])
        return catalogue.usual_word(attribute, code) if code >= 0 else default

    return Look(name("type", ""), name("colour", "grey"), name("pattern", "solid"), name("material", ""))


class Painter:
    """Draws pictures of one size."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._fine = size * _OVERSAMPLED
        axis: Plane = ((np.arange(self._fine) + 0.5) / self._fine - 0.5).astype(np.float32)
        self._x_HW: Plane = np.broadcast_to(axis, (self._fine, self._fine))
        self._y_HW: Plane = self._x_HW.T
        self._x_P: Plane = self._x_HW.reshape(-1)
        self._y_P: Plane = self._y_HW.reshape(-1)

    def png(self, look: Look, seed: int, number: int) -> bytes:
        """The PNG file of one item."""
        out = io.BytesIO()
        self.paint(look, seed, number).save(out, "PNG", compress_level=1)
        return out.getvalue()

    def paint(self, look: Look, seed: int, number: int) -> Image.Image:
        """The picture of one item, RGB."""
        rng = draws.stream(seed, draws.PICTURES, number)
        role_HW = self._outline(look.type, rng)
        base = _vary(lexicon.COLOURS[look.colour][1], rng)
        role_P = role_HW.reshape(-1)
        things, body = np.flatnonzero(role_P), np.flatnonzero(role_P == BODY)
        item_P3 = np.zeros((len(role_P), 3), dtype=np.float32)
        item_P3[things] = _tones(look, base, rng)[role_P[things]]
        item_P3[body] = _fabric(look, base, self._x_P[body], self._y_P[body], rng)
        item_P3[things] *= _light(look.material, self._x_P[things], self._y_P[things], rng)[:, None]
        bare_hw = 1.0 - _halved((role_HW != GROUND).astype(np.float32))
        small = _halved(item_P3.reshape(self._fine, self._fine, 3))
        small += self._ground(bare_hw, rng) * bare_hw[:, :, None]
        return Image.fromarray(np.clip(small, 0, 255).astype(np.uint8))

    def _outline(self, kind: str, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Which role every pixel plays."""
        shape = rng.uniform(-1.0, 1.0, 3)
        angle, scale, stretch = rng.normal(0.0, 0.07), rng.uniform(0.80, 0.96), rng.uniform(0.95, 1.05)
        flip = -1.0 if rng.random() < 0.5 else 1.0
        shift = rng.normal(0.0, 0.015, 2)
        turn = scale * np.array(
            [[flip * np.cos(angle), -np.sin(angle) * stretch], [flip * np.sin(angle), np.cos(angle) * stretch]]
        )
        image = Image.new("L", (self._fine, self._fine), GROUND)
        pen = ImageDraw.Draw(image)
        for role, points, width in OUTLINES[kind]((float(shape[0]), float(shape[1]), float(shape[2]))):
            placed = ((np.asarray(points) - 0.5) @ turn.T + 0.5 + shift) * self._fine
            flat: list[float] = placed.reshape(-1).tolist()
            if width:
                pen.line(flat, fill=role, width=max(1, round(width * scale * self._fine)), joint="curve")
            else:
                pen.polygon(flat, fill=role)
        return np.asarray(image)

    def _ground(self, bare_hw: Plane, rng: np.random.Generator) -> Plane:
        """A plain backdrop, lit from one side, with the item's soft shadow."""
        tone = rng.uniform(198.0, 228.0) + rng.normal(0.0, 4.0, 3)
        slope = rng.uniform(-14.0, 14.0, 2).astype(np.float32)
        light_hw = slope[0] * self._x_HW[::2, ::2] + slope[1] * self._y_HW[::2, ::2]
        by = max(1, self._size // 40)
        light_hw[by:, by:] -= np.float32(26.0) * (1.0 - bare_hw[:-by, :-by])
        return np.asarray(light_hw[:, :, None] + tone.astype(np.float32), dtype=np.float32)


def _halved(fine: Plane) -> Plane:
    """Each 2 x 2 pixels averaged into one."""
    rows = fine[::2] + fine[1::2]
    return np.asarray((rows[:, ::2] + rows[:, 1::2]) * np.float32(0.25))


def _fabric(look: Look, base: Plane, x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    """The body's colour with its pattern at P pixels: (P, 3)."""
    pale = look.colour in _PALE_COLOURS
    second = np.array(_choice(_SECOND_FOR_PALE if pale else _SECOND_FOR_DEEP, rng), np.float32)
    if look.pattern == "leopard" and base.mean() > 90.0:
        second = np.float32(0.22) * base  # the spots are dark where that can be seen
    angle = rng.normal(0.0, 0.12) + (np.pi / 2 if rng.random() < 0.5 else 0.0)
    scale = rng.uniform(0.88, 1.15)
    shift = rng.random(2)
    if look.pattern == "solid":
        return np.broadcast_to(base, (len(x), 3))
    cos, sin = np.float32(np.cos(angle) * scale), np.float32(np.sin(angle) * scale)
    u, v = cos * x - sin * y + np.float32(shift[0]), sin * x + cos * y + np.float32(shift[1])
    if look.pattern == "colourblock":  # two halves: placed by the item, not by the shift
        u, v = x, y
    cover = _PATTERNS[look.pattern](u, v)
    return np.asarray(base + (second - base) * cover[:, None], dtype=np.float32)


def _light(material: str, x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    """Lighting times the texture of the material at P pixels, about 1: (P,)."""
    slope = rng.uniform(-0.10, 0.10, 2).astype(np.float32)
    light = 1.0 + slope[0] * x + slope[1] * y
    texture = _TEXTURES.get(material)
    return np.asarray(light * texture(x, y) if texture else light, dtype=np.float32)


def _choice(options: tuple[tuple[int, int, int], ...], rng: np.random.Generator) -> tuple[int, int, int]:
    return options[int(rng.integers(len(options)))]


def _vary(rgb: tuple[int, int, int], rng: np.random.Generator) -> Plane:
    """The colour of this very item: a little lighter or darker, a little off in hue."""
    return np.clip(np.asarray(rgb) * rng.uniform(0.93, 1.05) + rng.normal(0.0, 4.0, 3), 4, 252).astype(np.float32)


def _tones(look: Look, base: Plane, rng: np.random.Generator) -> Plane:
    """The colour of every role but the body's pattern."""
    dark = float(base.mean()) < 70.0
    shade = base + 0.24 * (255.0 - base) if dark else base * 0.72
    tint = base + (0.40 if dark else 0.30) * (255.0 - base)
    golden = look.material == "gold" or (look.material != "silver" and rng.random() < 0.35)
    tones = np.zeros((7, 3), dtype=np.float32)
    tones[BODY], tones[SHADE], tones[TINT] = base, shade, tint
    tones[PALE], tones[METAL], tones[DARK] = (240, 238, 232), _GOLD if golden else _SILVER, (38, 36, 38)
    return tones


# --- patterns: how much of the second colour, 0 to 1, at (u, v) --------------------------------------------------


def _striped(u: Plane, v: Plane) -> Plane:
    return _band(v * 8.0, 0.42)


def _checked(u: Plane, v: Plane) -> Plane:
    return np.asarray(0.42 * (_band(u * 6.0, 0.5) + _band(v * 6.0, 0.5)), dtype=np.float32)


def _dotted(u: Plane, v: Plane) -> Plane:
    x, y = _cells(u * 6.5 + 0.5 * np.floor(v * 6.5), v * 6.5)[:2]
    return np.asarray(x * x + y * y < 0.075, dtype=np.float32)


def _floral(u: Plane, v: Plane) -> Plane:
    x, y, cell = _cells(u * 3.6 + 0.5 * np.floor(v * 3.6), v * 3.6)
    around, radius = np.arctan2(y, x) + cell, np.hypot(x, y)
    petals = (radius < 0.30 + 0.15 * np.cos(5.0 * around)) & (radius > 0.11)
    return np.asarray(petals, dtype=np.float32)


def _zigzag(u: Plane, v: Plane) -> Plane:
    return _band(v * 6.5 + 1.1 * np.abs(np.mod(u * 5.0, 1.0) * 2.0 - 1.0), 0.45)


def _leopard(u: Plane, v: Plane) -> Plane:
    x, y, cell = _cells(u * 5.5 + 0.5 * np.floor(v * 5.5), v * 5.5)
    x, y = x + 0.14 * np.sin(cell * 7.0), y + 0.14 * np.cos(cell * 5.0)
    radius, around = np.hypot(x, 1.25 * y), np.arctan2(y, x)
    broken = np.cos(2.0 * around + 3.0 * cell) > -0.55
    spot = (np.abs(radius - 0.27) < 0.105) & broken
    return np.asarray(spot, dtype=np.float32)


def _colourblock(u: Plane, v: Plane) -> Plane:
    return np.asarray(v > 0.02, dtype=np.float32)


def _band(phase: Plane, share: float) -> Plane:
    return np.asarray(np.mod(phase, 1.0) < share, dtype=np.float32)


def _cells(u: Plane, v: Plane) -> tuple[Plane, Plane, Plane]:
    """Offsets from the middle of the unit cell, and a number that differs from cell to cell."""
    column, row = np.floor(u), np.floor(v)
    cell: Plane = np.asarray(column * 1.7 + row * 2.9, dtype=np.float32)
    return np.asarray(u - column - 0.5), np.asarray(v - row - 0.5), cell


_PATTERNS: dict[str, Callable[[Plane, Plane], Plane]] = {
    "striped": _striped,
    "checked": _checked,
    "floral": _floral,
    "dotted": _dotted,
    "zigzag": _zigzag,
    "leopard": _leopard,
    "colourblock": _colourblock,
}


# --- materials: a faint factor on the light ----------------------------------------------------------------------


def _denim(x: Plane, y: Plane) -> Plane:
    return np.asarray(1.0 + 0.07 * np.sin(190.0 * (x + y)), dtype=np.float32)


def _knit(x: Plane, y: Plane) -> Plane:
    return np.asarray(
        1.0 + 0.06 * np.sin(100.0 * x) * np.sin(100.0 * y + 2.0 * np.abs(np.sin(50.0 * x))), dtype=np.float32
    )


def _gloss(x: Plane, y: Plane) -> Plane:
    return np.asarray(0.96 + 0.20 * np.exp(-30.0 * ((x + 0.12) ** 2 + (y + 0.1) ** 2)), dtype=np.float32)


def _sheen(x: Plane, y: Plane) -> Plane:
    return np.asarray(1.0 + 0.08 * np.sin(14.0 * x + 6.0 * y), dtype=np.float32)


def _weave(x: Plane, y: Plane) -> Plane:
    return np.asarray(1.0 + 0.05 * np.sign(np.sin(120.0 * x) * np.sin(120.0 * y)), dtype=np.float32)


def _straw(x: Plane, y: Plane) -> Plane:
    return np.asarray(1.0 + 0.10 * np.sin(80.0 * (x + y)) * np.sin(80.0 * (x - y)), dtype=np.float32)


_TEXTURES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "denim": _denim,
    "wool": _knit,
    "leather": _gloss,
    "rubber": _gloss,
    "acetate": _gloss,
    "steel": _gloss,
    "aluminium": _gloss,
    "silver": _gloss,
    "gold": _gloss,
    "silk": _sheen,
    "canvas": _weave,
    "mesh": _weave,
    "linen": _weave,
    "straw": _straw,
}
