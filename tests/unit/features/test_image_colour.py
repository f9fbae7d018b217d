from __future__ import annotations

import numpy as np
import pytest
import torch

from mrse.features.colour import colour_shares, palette


def naive(pixels: np.ndarray, levels: int) -> np.ndarray:
    """Shares of the palette in one area, pixel by pixel: each shared by the eight nearest colours of the palette."""
    shares = np.zeros((levels, levels, levels))
    for pixel in pixels.reshape(-1, 3):
        # The centre of the fine step that each channel falls in, measured in steps of the palette.
        place = np.clip((pixel // 16 + 0.5) / 16 * (levels - 1), 0, levels - 1)
        low = np.minimum(place.astype(int), levels - 2)
        part = place - low
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, part, 1 - part))
            shares[tuple(low + np.array(corner))] += weight
    return np.sqrt(shares.ravel() / shares.sum() * levels**3)


@pytest.mark.parametrize(("levels", "grid"), [(2, 0), (3, 2), (5, 1), (5, 3)])
def test_fast_equals_naive(levels: int, grid: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 13, 8, 3), dtype=np.uint8)
    shares = colour_shares(torch.from_numpy(pixels), grid, palette(levels)).numpy()
    assert shares.shape == (3, 1 + grid * grid, levels**3)
    down = np.arange(13) * max(grid, 1) // 13
    across = np.arange(8) * max(grid, 1) // 8
    for picture, tokens in zip(pixels, shares, strict=True):
        areas = [picture[down == row][:, across == column] for row in range(grid) for column in range(grid)]
        expected = [naive(area, levels) for area in [picture, *areas]]
        np.testing.assert_allclose(tokens, expected, atol=1e-4)


def test_tokens_have_the_size_of_normalised_ones() -> None:
    pixels = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shares = colour_shares(pixels, 2, palette(5))
    torch.testing.assert_close(shares.square().mean(dim=2), torch.ones(4, 5))


def test_areas_are_told_apart_and_near_colours_are_near() -> None:
    left_red = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    left_red[:, :, :4, 0] = 255
    whole, *areas = colour_shares(left_red, 2, palette(3))[0]
    torch.testing.assert_close(areas[0], areas[2])
    torch.testing.assert_close(areas[1], areas[3])
    assert (areas[0] * areas[1]).mean() < 0.2 < (whole * areas[0]).mean()

    solid = torch.tensor([[200, 40, 40], [180, 40, 40], [40, 40, 200]], dtype=torch.uint8)[:, None, None].expand(
        3, 4, 4, 3
    )
    red, near, blue = colour_shares(solid, 0, palette(5))[:, 0]
    assert (red * near).mean() > 0.8 > (red * blue).mean()


@pytest.mark.parametrize("levels", [2, 5, 8])
def test_every_fine_colour_counts_once(levels: int) -> None:
    torch.testing.assert_close(palette(levels).sum(dim=1), torch.ones(4096))
