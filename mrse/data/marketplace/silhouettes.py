"""Outlines of the types, as layers of polygons and lines in the unit square (x right, y down).

A layer is (role, points, width): width 0 is a filled polygon, else a line that wide. Roles say what fills it. Every
outline takes `v`, three numbers in [-1, 1] that vary its shape from item to item.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

Point = tuple[float, float]
Layer = tuple[int, list[Point], float]
Variation = tuple[float, float, float]

GROUND: Final = 0  # the background, for holes
BODY: Final = 1  # the item's colour and pattern
SHADE: Final = 2  # a darker tone of the colour: seams, cuffs, insides
TINT: Final = 3  # a lighter tone of the colour: collars, linings
PALE: Final = 4  # off-white: soles, faces, cards
METAL: Final = 5  # buckles, clasps, frames
DARK: Final = 6  # nearly black: heels, wheels, hands of a watch


def _both(half: Sequence[Point]) -> list[Point]:
    """A symmetric outline from its right half: (distance from the middle, y), top to bottom."""
    return [(0.5 + x, y) for x, y in half] + [(0.5 - x, y) for x, y in reversed(half)]


def _round(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0) -> list[Point]:
    """An ellipse, or an arc of it; degrees clockwise from the right."""
    steps = 28
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def _box(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _mirror(points: Sequence[Point]) -> list[Point]:
    return [(1.0 - x, y) for x, y in points]


def _pair(layers: Sequence[Layer]) -> list[Layer]:
    """The layers and their mirror image."""
    return [*layers, *((role, _mirror(points), width) for role, points, width in layers)]


def _sleeved(v: Variation, cuff: float, hem: float = 0.87) -> list[Point]:
    """A top with long sleeves."""
    w = 0.02 * v[0]
    return _both(
        [
            (0.0, 0.2),
            (0.09, 0.13),
            (0.2, 0.16),
            (0.3, 0.24),
            (0.42, 0.68),
            (0.42 - cuff, 0.72),
            (0.24 + w, 0.4),
            (0.25 + w, hem + 0.02 * v[1]),
            (0.0, hem + 0.02 * v[1]),
        ]
    )


def _short_sleeved(v: Variation) -> list[Point]:
    w, s = 0.02 * v[0], 0.03 * v[1]
    return _both(
        [
            (0.0, 0.19),
            (0.1, 0.13),
            (0.22, 0.16),
            (0.44, 0.34 + s),
            (0.36, 0.45 + s),
            (0.25 + w, 0.36),
            (0.25 + w, 0.88),
            (0.0, 0.88),
        ]
    )


def t_shirt(v: Variation) -> list[Layer]:
    return [
        (BODY, _short_sleeved(v), 0),
        (SHADE, _round(0.5, 0.13, 0.11, 0.075, 0, 180), 0.025),
        (GROUND, _round(0.5, 0.12, 0.1, 0.07), 0),
    ]


def shirt(v: Variation) -> list[Layer]:
    collar: list[Point] = [(0.5, 0.26), (0.57, 0.11), (0.66, 0.17), (0.6, 0.27)]
    cuffs: list[Layer] = [(SHADE, [(0.91, 0.64), (0.93, 0.71), (0.84, 0.74), (0.83, 0.67)], 0)]
    buttons: list[Layer] = [(PALE, _round(0.5, y, 0.014, 0.014), 0) for y in (0.34, 0.45, 0.56, 0.67, 0.78)]
    seam: Layer = (SHADE, [(0.5, 0.24), (0.5, 0.87)], 0.035)
    return [(BODY, _sleeved(v, 0.08), 0), seam, *buttons, *_pair([(TINT, collar, 0), *cuffs])]


def polo_shirt(v: Variation) -> list[Layer]:
    collar: list[Point] = [(0.5, 0.25), (0.58, 0.1), (0.68, 0.17), (0.6, 0.26)]
    return [
        (BODY, _short_sleeved(v), 0),
        (SHADE, [(0.5, 0.2), (0.5, 0.42)], 0.06),
        (PALE, _round(0.5, 0.3, 0.013, 0.013), 0),
        (PALE, _round(0.5, 0.37, 0.013, 0.013), 0),
        *_pair([(SHADE, collar, 0), (SHADE, [(0.84, 0.44), (0.94, 0.35)], 0.025)]),
    ]


def blouse(v: Variation) -> list[Layer]:
    f = 0.03 * v[0]
    outline = _both(
        [
            (0.0, 0.34),
            (0.1, 0.12),
            (0.2, 0.15),
            (0.4, 0.44),
            (0.45, 0.56),
            (0.28, 0.58),
            (0.23, 0.4),
            (0.19, 0.56),
            (0.32 + f, 0.86),
            (0.0, 0.9),
        ]
    )
    bow: list[Point] = [(0.5, 0.36), (0.6, 0.3), (0.62, 0.4)]
    return [
        (BODY, outline, 0),
        (SHADE, [(0.31, 0.57), (0.69, 0.57)], 0.02),
        *_pair([(TINT, bow, 0), (SHADE, [(0.78, 0.56), (0.95, 0.54)], 0.025)]),
    ]


def sweater(v: Variation) -> list[Layer]:
    ribs: list[Layer] = [(SHADE, [(0.81, 0.65), (0.92, 0.61), (0.94, 0.7), (0.83, 0.74)], 0)]
    return [
        (BODY, _sleeved(v, 0.1, 0.83), 0),
        (SHADE, _box(0.25, 0.79, 0.75, 0.87), 0),
        *_pair(ribs),
        (SHADE, _round(0.5, 0.14, 0.13, 0.09, 0, 180), 0.05),
        (GROUND, _round(0.5, 0.12, 0.1, 0.06), 0),
    ]


def hoodie(v: Variation) -> list[Layer]:
    pocket: list[Point] = [(0.37, 0.6), (0.63, 0.6), (0.7, 0.77), (0.3, 0.77)]
    return [
        (SHADE, _round(0.5, 0.17, 0.2, 0.15), 0),
        (BODY, _sleeved(v, 0.1, 0.84), 0),
        (BODY, _round(0.5, 0.17, 0.19, 0.14), 0),
        (DARK, _round(0.5, 0.19, 0.11, 0.09), 0),
        (SHADE, _box(0.25, 0.81, 0.75, 0.87), 0),
        (SHADE, pocket, 0.022),
        (SHADE, [*pocket[-1:], *pocket[:1]], 0.022),
        *_pair([(PALE, [(0.55, 0.27), (0.56, 0.46)], 0.02)]),
    ]


def tank_top(v: Variation) -> list[Layer]:
    w = 0.02 * v[0]
    outline = _both(
        [
            (0.0, 0.38),
            (0.08, 0.34),
            (0.12, 0.1),
            (0.18, 0.1),
            (0.19, 0.32),
            (0.27 + w, 0.44),
            (0.26 + w, 0.9),
            (0.0, 0.9),
        ]
    )
    return [(BODY, outline, 0), (SHADE, [(0.37, 0.1), (0.41, 0.33), (0.5, 0.375), (0.59, 0.33), (0.63, 0.1)], 0.02)]


def jacket(v: Variation) -> list[Layer]:
    pockets: list[Layer] = [
        (SHADE, [(0.58, 0.6), (0.69, 0.66)], 0.03),
        (TINT, [(0.51, 0.12), (0.62, 0.1), (0.66, 0.2), (0.52, 0.26)], 0),
    ]
    cuffs: list[Layer] = [(SHADE, [(0.82, 0.66), (0.92, 0.62), (0.94, 0.7), (0.84, 0.74)], 0)]
    return [
        (BODY, _sleeved(v, 0.1, 0.76), 0),
        (SHADE, _box(0.25, 0.72, 0.75, 0.8), 0),
        (METAL, [(0.5, 0.14), (0.5, 0.8)], 0.03),
        *_pair([*pockets, *cuffs]),
    ]


def coat(v: Variation) -> list[Layer]:
    f = 0.03 * v[0]
    outline = _both(
        [
            (0.0, 0.1),
            (0.1, 0.06),
            (0.19, 0.09),
            (0.27, 0.15),
            (0.37, 0.58),
            (0.28, 0.61),
            (0.21, 0.34),
            (0.2, 0.48),
            (0.29 + f, 0.96),
            (0.0, 0.96),
        ]
    )
    lapel: list[Point] = [(0.5, 0.4), (0.55, 0.06), (0.67, 0.14), (0.62, 0.26)]
    return [
        (BODY, outline, 0),
        (SHADE, [(0.5, 0.3), (0.5, 0.96)], 0.02),
        (SHADE, _box(0.28, 0.49, 0.72, 0.55), 0),
        *_pair(
            [
                (TINT, lapel, 0),
                (DARK, _round(0.56, 0.44, 0.018, 0.018), 0),
                (DARK, _round(0.56, 0.62, 0.018, 0.018), 0),
                (SHADE, [(0.6, 0.66), (0.7, 0.68)], 0.025),
            ]
        ),
    ]


def blazer(v: Variation) -> list[Layer]:
    lapel: list[Point] = [(0.5, 0.58), (0.56, 0.12), (0.68, 0.2), (0.64, 0.27), (0.69, 0.3)]
    return [
        (BODY, _sleeved(v, 0.08, 0.86), 0),
        (PALE, [(0.42, 0.13), (0.58, 0.13), (0.5, 0.58)], 0),
        (SHADE, [(0.5, 0.56), (0.5, 0.87)], 0.02),
        *_pair([(SHADE, lapel, 0), (SHADE, [(0.6, 0.7), (0.71, 0.7)], 0.03)]),
        (DARK, _round(0.5, 0.64, 0.02, 0.02), 0),
        (DARK, _round(0.5, 0.74, 0.02, 0.02), 0),
    ]


def _legs(waist: float, hip: float, hem_in: float, hem_out: float, bottom: float, top: float = 0.07) -> list[Point]:
    return _both(
        [(0.0, top), (waist, top), (hip, 0.3), (hem_out, bottom), (hem_in, bottom), (0.015, 0.42), (0.0, 0.42)]
    )


def jeans(v: Variation) -> list[Layer]:
    flare = 0.04 * v[0]
    stitches: list[Layer] = [
        (PALE, [(0.68, 0.14), (0.6, 0.22), (0.55, 0.14)], 0.014),
        (PALE, [(0.67, 0.3), (0.68 + flare, 0.93)], 0.01),
    ]
    return [
        (BODY, _legs(0.2, 0.25, 0.05, 0.25 + flare, 0.95), 0),
        (SHADE, _box(0.3, 0.06, 0.7, 0.12), 0),
        (METAL, _round(0.5, 0.09, 0.018, 0.018), 0),
        (PALE, [(0.5, 0.13), (0.5, 0.36)], 0.014),
        *_pair(stitches),
    ]


def trousers(v: Variation) -> list[Layer]:
    taper = 0.02 * v[0]
    crease: list[Layer] = [(SHADE, [(0.62, 0.18), (0.63, 0.95)], 0.018)]
    return [
        (BODY, _legs(0.18, 0.24, 0.06, 0.18 + taper, 0.96), 0),
        (SHADE, _box(0.32, 0.05, 0.68, 0.1), 0),
        *_pair(crease),
    ]


def shorts(v: Variation) -> list[Layer]:
    low = 0.72 + 0.05 * v[0]
    outline = _both([(0.0, 0.2), (0.25, 0.2), (0.36, low), (0.04, low), (0.0, 0.5)])
    return [
        (BODY, outline, 0),
        (SHADE, _box(0.25, 0.17, 0.75, 0.25), 0),
        *_pair([(PALE, [(0.53, 0.25), (0.54, 0.42)], 0.018)]),
    ]


def skirt(v: Variation) -> list[Layer]:
    low, f = 0.82 + 0.06 * v[0], 0.05 * v[1]
    outline = _both([(0.0, 0.16), (0.17, 0.16), (0.38 + f, low), (0.2, low + 0.035), (0.0, low + 0.04)])
    pleats: list[Layer] = [(SHADE, [(0.56, 0.25), (0.64, low + 0.02)], 0.014)]
    return [(BODY, outline, 0), (SHADE, _box(0.33, 0.14, 0.67, 0.22), 0), *_pair(pleats)]


def leggings(v: Variation) -> list[Layer]:
    outline = _both(
        [
            (0.0, 0.06),
            (0.14, 0.06),
            (0.18, 0.28),
            (0.12, 0.62),
            (0.085, 0.95),
            (0.035, 0.95),
            (0.012, 0.36),
            (0.0, 0.34),
        ]
    )
    return [(BODY, outline, 0), (SHADE, _box(0.36, 0.05, 0.64, 0.13 + 0.01 * v[0]), 0)]


def dress(v: Variation) -> list[Layer]:
    f, low = 0.04 * v[0], 0.93 + 0.03 * v[1]
    outline = _both(
        [
            (0.0, 0.22),
            (0.09, 0.17),
            (0.11, 0.05),
            (0.15, 0.05),
            (0.17, 0.24),
            (0.12, 0.44),
            (0.33 + f, low - 0.03),
            (0.0, low),
        ]
    )
    return [(BODY, outline, 0), (SHADE, _box(0.375, 0.42, 0.625, 0.47), 0)]


def swimsuit(v: Variation) -> list[Layer]:
    outline = _both(
        [
            (0.0, 0.32),
            (0.08, 0.28),
            (0.11, 0.07),
            (0.15, 0.07),
            (0.17, 0.3),
            (0.13, 0.5),
            (0.2, 0.68),
            (0.05, 0.92),
            (0.0, 0.92),
        ]
    )
    return [
        (BODY, outline, 0),
        (SHADE, [(0.31, 0.67), (0.45, 0.91)], 0.02),
        (SHADE, [(0.69, 0.67), (0.55, 0.91)], 0.02),
    ]


def sneakers(v: Variation) -> list[Layer]:
    h = 0.03 * v[0]
    upper: list[Point] = [
        (0.08, 0.68),
        (0.1, 0.36 - h),
        (0.2, 0.32 - h),
        (0.3, 0.4),
        (0.42, 0.33 - h),
        (0.52, 0.38),
        (0.72, 0.55),
        (0.9, 0.6),
        (0.94, 0.7),
    ]
    laces: list[Layer] = [
        (PALE, [(0.42 + 0.08 * i, 0.37 + 0.05 * i), (0.36 + 0.08 * i, 0.46 + 0.05 * i)], 0.026) for i in range(4)
    ]
    swoosh: Layer = (PALE, [(0.2, 0.6), (0.34, 0.6), (0.52, 0.52)], 0.035)
    return [
        (BODY, upper, 0),
        (PALE, [(0.06, 0.67), (0.95, 0.67), (0.95, 0.74), (0.88, 0.78), (0.1, 0.78), (0.06, 0.74)], 0),
        *laces,
        swoosh,
    ]


def loafers(v: Variation) -> list[Layer]:
    upper: list[Point] = [
        (0.07, 0.66),
        (0.08, 0.44),
        (0.18, 0.42),
        (0.3, 0.52),
        (0.48, 0.49),
        (0.62, 0.42),
        (0.8, 0.52),
        (0.93, 0.6),
        (0.95, 0.67),
    ]
    sole: list[Point] = [(0.06, 0.66), (0.95, 0.66), (0.94, 0.71), (0.32, 0.71), (0.3, 0.77), (0.07, 0.77)]
    return [
        (BODY, upper, 0),
        (DARK, sole, 0),
        (SHADE, [(0.5, 0.49), (0.62, 0.62)], 0.07),
        (METAL, [(0.54, 0.53), (0.59, 0.58)], 0.035),
    ]


def heels(v: Variation) -> list[Layer]:
    t = 0.02 * v[0]
    upper: list[Point] = [
        (0.1, 0.3 + t),
        (0.2, 0.26 + t),
        (0.3, 0.42),
        (0.48, 0.58),
        (0.62, 0.62),
        (0.8, 0.66),
        (0.93, 0.76),
        (0.9, 0.8),
        (0.68, 0.8),
        (0.45, 0.72),
        (0.28, 0.56),
        (0.14, 0.48),
    ]
    return [
        (BODY, upper, 0),
        (DARK, [(0.11, 0.46), (0.22, 0.53), (0.17, 0.82), (0.13, 0.82)], 0),
        (DARK, [(0.45, 0.73), (0.68, 0.81), (0.91, 0.8)], 0.02),
    ]


def boots(v: Variation) -> list[Layer]:
    top = 0.12 + 0.06 * v[0]
    upper: list[Point] = [(0.2, top), (0.54, top), (0.55, 0.5), (0.72, 0.6), (0.88, 0.66), (0.92, 0.8), (0.18, 0.8)]
    sole: list[Point] = [(0.17, 0.79), (0.93, 0.79), (0.93, 0.86), (0.42, 0.86), (0.4, 0.9), (0.17, 0.9)]
    laces: list[Layer] = [(PALE, [(0.46, y), (0.56, y + 0.03)], 0.02) for y in (0.3, 0.38, 0.46)]
    return [(BODY, upper, 0), (DARK, sole, 0), (SHADE, [(0.2, top + 0.03), (0.54, top + 0.03)], 0.05), *laces]


def sandals(v: Variation) -> list[Layer]:
    lift = 0.04 * v[0]
    sole: list[Point] = [(0.07, 0.62 - lift), (0.35, 0.68), (0.65, 0.73), (0.94, 0.74), (0.93, 0.82), (0.07, 0.82)]
    straps: list[Layer] = [
        (BODY, [(0.62, 0.74), (0.68, 0.52), (0.82, 0.56), (0.88, 0.75)], 0),
        (BODY, [(0.1, 0.64), (0.16, 0.4), (0.36, 0.36), (0.44, 0.7)], 0.06),
        (BODY, [(0.36, 0.38), (0.7, 0.62)], 0.05),
        (METAL, _round(0.3, 0.375, 0.03, 0.03), 0),
    ]
    return [(DARK, sole, 0), (PALE, [(0.07, 0.62 - lift), (0.35, 0.68), (0.65, 0.73), (0.94, 0.74)], 0.03), *straps]


def flip_flops(v: Variation) -> list[Layer]:
    foot = [(x, y) for x, y in _round(0.73, 0.5, 0.17 + 0.01 * v[0], 0.42)]
    strap: list[Point] = [(0.6, 0.52), (0.72, 0.28), (0.86, 0.52)]
    return _pair(
        [
            (BODY, foot, 0),
            (TINT, _round(0.73, 0.5, 0.11, 0.35), 0),
            (DARK, strap, 0.05),
            (BODY, _round(0.72, 0.28, 0.03, 0.03), 0),
        ]
    )


def handbag(v: Variation) -> list[Layer]:
    w = 0.03 * v[0]
    handle = _round(0.5, 0.42, 0.2 + w, 0.3, 180, 360)
    bag = _both([(0.0, 0.4), (0.3, 0.4), (0.4 + w, 0.88), (0.0, 0.88)])
    return [
        (SHADE, handle, 0.045),
        (BODY, bag, 0),
        (SHADE, [(0.18, 0.5), (0.82, 0.5)], 0.025),
        (METAL, _box(0.46, 0.47, 0.54, 0.55), 0),
    ]


def backpack(v: Variation) -> list[Layer]:
    w = 0.02 * v[0]
    body = _both([(0.0, 0.1), (0.16, 0.12), (0.26 + w, 0.26), (0.29 + w, 0.9), (0.0, 0.92)])
    pocket = _both([(0.0, 0.56), (0.19, 0.56), (0.2, 0.84), (0.0, 0.84)])
    side: list[Layer] = [(SHADE, [(0.79 + w, 0.6), (0.88 + w, 0.64), (0.88 + w, 0.86), (0.79 + w, 0.88)], 0)]
    return [
        (SHADE, _round(0.5, 0.11, 0.07, 0.06, 180, 360), 0.035),
        *_pair(side),
        (BODY, body, 0),
        (SHADE, pocket, 0),
        (METAL, [(0.33, 0.6), (0.67, 0.6)], 0.02),
        (SHADE, _round(0.5, 0.42, 0.24, 0.16, 180, 360), 0.025),
    ]


def suitcase(v: Variation) -> list[Layer]:
    ribs: list[Layer] = [(SHADE, [(x, 0.32), (x, 0.86)], 0.02) for x in (0.38, 0.62)]
    wheels: list[Layer] = [(DARK, _round(0.68, 0.93, 0.04, 0.04), 0)]
    w = 0.02 * v[0]
    return [
        (METAL, [(0.4, 0.3), (0.4, 0.07), (0.6, 0.07), (0.6, 0.3)], 0.03),
        *_pair(wheels),
        (
            BODY,
            _both([(0.0, 0.26), (0.24 + w, 0.26), (0.28 + w, 0.3), (0.28 + w, 0.87), (0.24 + w, 0.91), (0.0, 0.91)]),
            0,
        ),
        *ribs,
    ]


def clutch(v: Variation) -> list[Layer]:
    low = 0.72 + 0.03 * v[0]
    return [
        (METAL, [(0.12, 0.36), (0.3, 0.16), (0.7, 0.16), (0.88, 0.36)], 0.014),
        (BODY, _box(0.06, 0.34, 0.94, low), 0),
        (SHADE, [(0.06, 0.34), (0.5, 0.58), (0.94, 0.34)], 0.03),
        (METAL, _round(0.5, 0.58, 0.035, 0.035), 0),
    ]


def cap(v: Variation) -> list[Layer]:
    dome = [*_round(0.42, 0.58, 0.32, 0.34 + 0.02 * v[0], 180, 360), (0.74, 0.6), (0.1, 0.62)]
    visor: list[Point] = [(0.5, 0.58), (0.74, 0.55), (0.92, 0.62), (0.98, 0.7), (0.74, 0.66), (0.5, 0.66)]
    return [
        (BODY, dome, 0),
        (SHADE, visor, 0),
        (SHADE, [(0.42, 0.25), (0.44, 0.58)], 0.014),
        (SHADE, _round(0.42, 0.25, 0.03, 0.02), 0),
    ]


def beanie(v: Variation) -> list[Layer]:
    dome = [*_round(0.5, 0.62, 0.31, 0.4, 180, 360), (0.81, 0.68), (0.19, 0.68)]
    ribs: list[Layer] = [(BODY, [(x, 0.66), (x, 0.82)], 0.012) for x in (0.3, 0.4, 0.5, 0.6, 0.7)]
    return [
        (BODY, dome, 0),
        (SHADE, _box(0.16, 0.64, 0.84, 0.84), 0),
        *ribs,
        (TINT, _round(0.5, 0.17, 0.1 + 0.015 * v[0], 0.1), 0),
    ]


def sun_hat(v: Variation) -> list[Layer]:
    brim = _round(0.5, 0.64, 0.46, 0.14 + 0.02 * v[0])
    crown = [*_round(0.5, 0.5, 0.24, 0.26, 180, 360), (0.75, 0.62), (0.25, 0.62)]
    return [
        (BODY, brim, 0),
        (SHADE, _round(0.5, 0.63, 0.28, 0.07), 0),
        (BODY, crown, 0),
        (DARK, [(0.255, 0.56), (0.5, 0.6), (0.745, 0.56)], 0.07),
    ]


def sunglasses(v: Variation) -> list[Layer]:
    r = 0.02 * v[0]
    lens = _round(0.73, 0.52, 0.19 + r, 0.15 + r)
    return [
        (BODY, [(0.46, 0.48), (0.54, 0.48)], 0.06),
        *_pair(
            [
                (BODY, [(0.9, 0.46), (0.97, 0.36)], 0.05),
                (BODY, lens, 0),
                (DARK, _round(0.73, 0.52, 0.135 + r, 0.1 + r), 0),
                (PALE, [(0.68, 0.47), (0.73, 0.45)], 0.02),
            ]
        ),
    ]


def watch(v: Variation) -> list[Layer]:
    w, r = 0.11 + 0.015 * v[0], 0.22 + 0.02 * v[1]
    return [
        (BODY, _both([(0.0, 0.03), (w - 0.03, 0.03), (w, 0.4), (w, 0.6), (w - 0.03, 0.97), (0.0, 0.97)]), 0),
        (METAL, _round(0.5, 0.5, r, r), 0),
        (PALE, _round(0.5, 0.5, r - 0.045, r - 0.045), 0),
        (DARK, [(0.5, 0.5), (0.5, 0.36)], 0.025),
        (DARK, [(0.5, 0.5), (0.59, 0.54)], 0.025),
        (METAL, _box(0.5 + r, 0.48, 0.54 + r, 0.52), 0),
    ]


def earrings(v: Variation) -> list[Layer]:
    drop = [(0.72, 0.36), (0.85, 0.62 + 0.03 * v[0]), *_round(0.72, 0.68, 0.14, 0.16, 0, 180), (0.59, 0.62)]
    return _pair(
        [
            (METAL, _round(0.72, 0.2, 0.06, 0.09, 100, 400), 0.025),
            (METAL, [(0.72, 0.28), (0.72, 0.4)], 0.025),
            (BODY, drop, 0),
            (PALE, _round(0.68, 0.62, 0.025, 0.04), 0),
        ]
    )


def necklace(v: Variation) -> list[Layer]:
    chain = [(0.12, 0.06), (0.16, 0.3), (0.3, 0.52), (0.5, 0.62), (0.7, 0.52), (0.84, 0.3), (0.88, 0.06)]
    beads: list[Layer] = [
        (BODY, _round(x, y, 0.05, 0.05), 0) for x, y in ((0.22, 0.42), (0.35, 0.56), (0.65, 0.56), (0.78, 0.42))
    ]
    gem: list[Point] = [(0.5, 0.56), (0.65, 0.73), (0.5, 0.95 + 0.02 * v[0]), (0.35, 0.73)]
    return [
        (METAL, chain, 0.025),
        *beads,
        (BODY, gem, 0),
        (TINT, [(0.5, 0.6), (0.57, 0.72), (0.5, 0.78), (0.43, 0.72)], 0),
    ]


def ring(v: Variation) -> list[Layer]:
    gem = _both([(0.0, 0.06), (0.15, 0.06), (0.24, 0.2), (0.0, 0.46)])
    return [
        (METAL, _round(0.5, 0.64, 0.27, 0.28), 0.075 + 0.01 * v[0]),
        (BODY, gem, 0),
        (TINT, _both([(0.0, 0.06), (0.07, 0.06), (0.1, 0.2), (0.0, 0.36)]), 0),
    ]


def belt(v: Variation) -> list[Layer]:
    coil = _round(0.5, 0.5, 0.4, 0.24 + 0.02 * v[0])
    holes: list[Layer] = [(DARK, _round(x, y, 0.015, 0.015), 0) for x, y in ((0.74, 0.69), (0.81, 0.65), (0.66, 0.72))]
    return [
        (SHADE, _round(0.5, 0.44, 0.4, 0.22, 180, 360), 0.1),
        (BODY, coil[:15], 0.13),
        *holes,
        (METAL, _box(0.3, 0.62, 0.47, 0.85), 0),
        (BODY, _box(0.345, 0.68, 0.47, 0.79), 0),
    ]


def wallet(v: Variation) -> list[Layer]:
    low = 0.76 + 0.02 * v[0]
    return [
        (PALE, _box(0.2, 0.2, 0.7, 0.4), 0),
        (METAL, _box(0.3, 0.16, 0.8, 0.4), 0),
        (BODY, _box(0.12, 0.27, 0.88, low), 0),
        (SHADE, [(0.16, 0.31), (0.84, 0.31), (0.84, low - 0.04), (0.16, low - 0.04), (0.16, 0.31)], 0.014),
        (SHADE, [(0.66, 0.44), (0.88, 0.44), (0.88, 0.6), (0.66, 0.6)], 0),
        (METAL, _round(0.72, 0.52, 0.025, 0.025), 0),
    ]


def scarf(v: Variation) -> list[Layer]:
    s = 0.02 * v[0]
    fringe: list[Layer] = [(SHADE, [(x, 0.86), (x - 0.01, 0.96)], 0.018) for x in (0.54, 0.59, 0.64, 0.69, 0.74)]
    tail: list[Point] = [(0.5, 0.3), (0.7, 0.34), (0.77 + s, 0.88), (0.52, 0.88)]
    other: list[Point] = [(0.36, 0.34), (0.52, 0.34), (0.44, 0.76), (0.26 - s, 0.74)]
    return [
        (SHADE, other, 0),
        (BODY, other[:1] + other[2:], 0),
        (BODY, tail, 0),
        *fringe,
        (BODY, _round(0.5, 0.24, 0.32, 0.18), 0),
        (SHADE, _round(0.5, 0.19, 0.19, 0.08), 0),
        (SHADE, [(0.3, 0.32), (0.5, 0.38), (0.72, 0.3)], 0.018),
    ]


def tie(v: Variation) -> list[Layer]:
    w = 0.02 * v[0]
    blade = _both([(0.0, 0.18), (0.055, 0.18), (0.13 + w, 0.8), (0.0, 0.97)])
    return [(BODY, blade, 0), (SHADE, _both([(0.0, 0.04), (0.11, 0.04), (0.06, 0.19), (0.0, 0.19)]), 0)]


def socks(v: Variation) -> list[Layer]:
    sock: list[Point] = [
        (0.56, 0.08),
        (0.8, 0.08),
        (0.8, 0.52),
        (0.84, 0.66),
        (0.68, 0.92),
        (0.52, 0.9),
        (0.5, 0.78),
        (0.57, 0.58),
    ]
    other: list[Point] = [(x - 0.38, y + 0.02 * v[0]) for x, y in sock]

    def one(points: list[Point]) -> list[Layer]:
        (x0, y0), (x1, _) = points[0], points[1]
        toe = [points[4], points[5], points[6], ((points[6][0] + points[4][0]) / 2, points[6][1])]
        return [(BODY, points, 0), (SHADE, _box(x0, y0, x1, y0 + 0.1), 0), (TINT, toe, 0)]

    return [*one(other), *one(sock)]


def gloves(v: Variation) -> list[Layer]:
    hand: list[Point] = [
        (0.58, 0.76),
        (0.56, 0.5),
        (0.6, 0.2),
        (0.66, 0.12),
        (0.78, 0.12),
        (0.87, 0.22),
        (0.88, 0.5),
        (0.84, 0.76),
    ]
    thumb: list[Point] = [(0.58, 0.62), (0.5, 0.42), (0.53, 0.36), (0.6, 0.46)]
    fingers: list[Layer] = [(SHADE, [(x, 0.12), (x, 0.4)], 0.016) for x in (0.67, 0.74, 0.81)]
    return _pair([(BODY, hand, 0), (BODY, thumb, 0), *fingers, (SHADE, _box(0.57, 0.74, 0.85, 0.88 + 0.02 * v[0]), 0)])


def umbrella(v: Variation) -> list[Layer]:
    canopy = [
        *_round(0.5, 0.5, 0.45, 0.4 + 0.02 * v[0], 180, 360),
        (0.8, 0.44),
        (0.65, 0.5),
        (0.5, 0.44),
        (0.35, 0.5),
        (0.2, 0.44),
    ]
    ribs: list[Layer] = [(SHADE, [(0.5, 0.1), (x, 0.47)], 0.014) for x in (0.2, 0.35, 0.65, 0.8)]
    return [
        (DARK, [(0.5, 0.04), (0.5, 0.86)], 0.025),
        (DARK, _round(0.43, 0.86, 0.07, 0.08, 0, 180), 0.03),
        (BODY, canopy, 0),
        *ribs,
    ]


OUTLINES: dict[str, Callable[[Variation], list[Layer]]] = {
    "t-shirt": t_shirt,
    "shirt": shirt,
    "dress": dress,
    "sneakers": sneakers,
    "jeans": jeans,
    "handbag": handbag,
    "sweater": sweater,
    "watch": watch,
    "trousers": trousers,
    "skirt": skirt,
    "heels": heels,
    "backpack": backpack,
    "hoodie": hoodie,
    "jacket": jacket,
    "blouse": blouse,
    "shorts": shorts,
    "boots": boots,
    "sunglasses": sunglasses,
    "scarf": scarf,
    "coat": coat,
    "sandals": sandals,
    "cap": cap,
    "socks": socks,
    "blazer": blazer,
    "earrings": earrings,
    "polo shirt": polo_shirt,
    "leggings": leggings,
    "loafers": loafers,
    "necklace": necklace,
    "belt": belt,
    "wallet": wallet,
    "tank top": tank_top,
    "tie": tie,
    "swimsuit": swimsuit,
    "flip flops": flip_flops,
    "suitcase": suitcase,
    "clutch": clutch,
    "sun hat": sun_hat,
    "ring": ring,
    "beanie": beanie,
    "gloves": gloves,
    "umbrella": umbrella,
}
