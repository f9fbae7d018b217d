"""The frozen image encoder: any Hugging Face vision model, by name or folder, as a function from pictures to tokens.

Shapes: B batch, T tokens (1 global + a square grid), V width of a token, L tokens of the transformer, H and W pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from mrse.device import CPU
from mrse.errors import ConfigError
from mrse.features.colour import colour_shares, palette
from mrse.features.preprocess import Preprocessing

if TYPE_CHECKING:
    import transformers

_TOKENS_KEY, _COLOURS_KEY = "mrse_tokens", "mrse_colour_levels"
_DEFAULT_TOKENS, _DEFAULT_COLOURS = 5, 5
_HALF_MAX = 65504.0
# Parts of a config that change with the library or the folder and not with the function that the model computes.
_VOLATILE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


class ImageEncoder:
    """Pictures to `tokens` vectors each: one for the whole and a square grid of averages, row by row from the top left.

    Each vector is what the model made of its area and, after that, the colours of the area (`mrse.features.colour`).
    The weights are frozen and the model is in evaluation mode.

    Attributes:
        dim: V, width of a token: the model's, and `colour_levels ** 3` more.
        tokens: T = 1 + g * g for a g x g grid.
        fingerprint: sha256 over everything that decides the features: weights, architecture, preprocessing, pooling.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        preprocessing: Preprocessing,
        tokens: int,
        colour_levels: int,
        where: str = "image_encoder",
        device: torch.device = CPU,
    ) -> None:
        """Freeze a model.

        Args:
            model: takes `pixel_values` `(B, 3, H, W)` and returns `last_hidden_state`, `(B, L, V)` or `(B, V, h, w)`.
            preprocessing: what to do to a picture first.
            tokens: T, 1 + a square number.
            colour_levels: steps of each colour channel in the palette; 0 for no colours.
            where: the model's name, for messages.
            device: where it runs; features of a GPU and of a CPU differ in their last bits.

        Raises:
            ConfigError: `tokens` is not 1 + a square, or the model does not work on such input.
        """
        self._grid = math.isqrt(tokens - 1)
        if self._grid**2 != tokens - 1:
            raise ConfigError(f"{where}: tokens = {tokens} is not 1 + a square number (1, 2, 5, 10, 17, ...)")
        if colour_levels != 0 and not 2 <= colour_levels <= 8:
            raise ConfigError(f"{where}: colour_levels = {colour_levels} is neither 0 nor 2 to 8")
        self._device = device
        frozen: Any = model  # its annotations hide `to` and `config`
        self._model = frozen.to(self._device, torch.float32).eval().requires_grad_(False)
        self._preprocessing = preprocessing
        self._scale_C11 = torch.tensor(preprocessing.scale)[:, None, None].to(device)
        self._shift_C11 = torch.tensor(preprocessing.shift)[:, None, None].to(device)
        self.tokens = tokens
        self._palette_FC = palette(colour_levels).to(self._device) if colour_levels else None
        self._colour_levels = colour_levels
        self._prefix, width = self._probe(where)
        self.dim = width + colour_levels**3
        if self._prefix and isinstance(getattr(model, "pooler", None), torch.nn.Module):
            self._model.pooler = None  # unused, and random where the checkpoint has none
        self.fingerprint = self._fingerprint()

    @classmethod
    def load(
        cls,
        name: str | Path,
        tokens: int | None = None,
        colour_levels: int | None = None,
        device: torch.device = CPU,
    ) -> ImageEncoder:
        """Load a saved encoder or any Hugging Face vision model.

        Args:
            name: a folder, or a model's name on the hub (fetched, or found in the local cache).
            tokens: T; by default what the folder was saved with, else 5.
            colour_levels: likewise.
            device: where it runs.

        Raises:
            ConfigError: it cannot be loaded, lacks safetensors weights or preprocessor settings, or is no vision model.
        """
        # Slow to import, and needed only here: a stage that embeds no picture does without.
        from transformers import AutoModel
        from transformers.image_processing_utils import BaseImageProcessor

        where = f"image_encoder {str(name)!r}"
        try:
            with _quiet(), torch.random.fork_rng(devices=[]):
                model, report = AutoModel.from_pretrained(str(name), output_loading_info=True, use_safetensors=True)
            raw, _ = BaseImageProcessor.get_image_processor_dict(str(name))
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{where}: cannot be loaded: {error}") from None
        if hasattr(model.config, "vision_config"):  # CLIP and its kin: the picture's half
            model = model.vision_model
        if model.main_input_name != "pixel_values":
            raise ConfigError(f"{where}: takes {model.main_input_name}, not pictures; name a vision model")
        missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
        if missing or report["mismatched_keys"]:
            raise ConfigError(f"{where}: the weights are incomplete; missing or of another shape: {missing[:3]}")
        raw = dict(raw)
        saved_tokens = raw.pop(_TOKENS_KEY, _DEFAULT_TOKENS)
        saved_colours = raw.pop(_COLOURS_KEY, _DEFAULT_COLOURS)
        tokens = saved_tokens if tokens is None else tokens
        colour_levels = saved_colours if colour_levels is None else colour_levels
        return cls(model, Preprocessing.parse(raw, where), tokens, colour_levels, where, device)

    def save(self, folder: Path) -> None:
        """Write `config.json`, `model.safetensors`, `preprocessor_config.json`: what `load` and transformers read."""
        folder.mkdir(parents=True, exist_ok=True)
        with _quiet():
            self._model.save_pretrained(folder)
        settings = self._preprocessing.raw | {_TOKENS_KEY: self.tokens, _COLOURS_KEY: self._colour_levels}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """One RGB picture as the `(H, W, 3)` values that `encode_pixels` takes; safe to call from threads."""
        return self._preprocessing.pixels(image)

    def encode(self, images: Sequence[Image.Image], batch_size: int = 256) -> NDArray[np.float16]:
        """Features of RGB pictures of any size.

        Returns:
            `(B, T, V)`.
        """
        parts = [
            self.encode_pixels(np.stack([self.pixels(image) for image in images[start : start + batch_size]]))
            for start in range(0, len(images), batch_size)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.tokens, self.dim), dtype=np.float16)

    def encode_pixels(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Features of one batch of prepared pictures, `(B, T, V)`."""
        with torch.inference_mode():
            shown_BHWC = torch.from_numpy(pixels_BHWC).to(self._device)
            values_BCHW = shown_BHWC.permute(0, 3, 1, 2).float()
            output = self._model(pixel_values=values_BCHW * self._scale_C11 - self._shift_C11)
            tokens_BTV = self._pool(output).clamp(-_HALF_MAX, _HALF_MAX)
            if self._palette_FC is not None:
                colours_BTC = colour_shares(shown_BHWC, self._grid, self._palette_FC)
                tokens_BTV = torch.cat([tokens_BTV, colours_BTC], dim=2)
            pooled: NDArray[np.float16] = tokens_BTV.half().cpu().numpy()
            return pooled

    def _pool(self, output: Any) -> torch.Tensor:
        hidden: torch.Tensor = output.last_hidden_state
        if hidden.ndim == 3:
            patches_BLV = hidden[:, self._prefix :]
            side = math.isqrt(patches_BLV.shape[1])
            hidden = patches_BLV.transpose(1, 2).reshape(len(hidden), -1, side, side)
        first_B1V: torch.Tensor = output.last_hidden_state[:, :1]
        whole_B1V = first_B1V if self._prefix else hidden.mean(dim=(2, 3))[:, None]
        if self._grid == 0:
            return whole_B1V
        grid_BVgg = functional.adaptive_avg_pool2d(hidden, self._grid)
        return torch.cat([whole_B1V, grid_BVgg.flatten(2).transpose(1, 2)], dim=1)

    def _probe(self, where: str) -> tuple[int, int]:
        """How many tokens come before the patches (class and register tokens), and the width of a token."""
        with torch.inference_mode():
            blank = torch.zeros(1, 3, self._preprocessing.height, self._preprocessing.width, device=self._device)
            try:
                hidden = self._model(pixel_values=blank).last_hidden_state
            except (ValueError, RuntimeError, AttributeError, TypeError) as error:
                raise ConfigError(f"{where}: does not work on {tuple(blank.shape)} pictures: {error}") from None
        if not bool(torch.isfinite(hidden).all()):
            raise ConfigError(f"{where}: gives values that are not finite; its weights are broken")
        if hidden.ndim == 4:
            return 0, hidden.shape[1]
        prefix = _prefix(hidden.shape[1], self._patches())
        if prefix is None:
            raise ConfigError(f"{where}: its {hidden.shape[1]} tokens are no square grid of patches; use square input")
        return prefix, hidden.shape[2]

    def _patches(self) -> int | None:
        patch = getattr(self._model.config, "patch_size", None)
        if not isinstance(patch, int):
            return None
        return (self._preprocessing.height // patch) * (self._preprocessing.width // patch)

    def _fingerprint(self) -> str:
        config = {key: value for key, value in self._model.config.to_dict().items() if key not in _VOLATILE}
        prepared = self._preprocessing
        facts = [prepared.height, prepared.width, prepared.shortest, prepared.resample, prepared.scale, prepared.shift]
        digest = hashlib.sha256(
            json.dumps([config, facts, self.tokens, self._colour_levels], sort_keys=True, default=str).encode()
        )
        for name, weight in sorted(self._model.state_dict().items()):
            digest.update(f"{name}{tuple(weight.shape)}".encode())
            digest.update(weight.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _prefix(length: int, patches: int | None) -> int | None:
    """Tokens before the patches: `length` minus the patches where that fits, else minus the nearest square."""
    if patches is not None and 0 <= length - patches <= 16 and math.isqrt(patches) ** 2 == patches:
        return length - patches
    near = length - math.isqrt(length) ** 2
    return near if near <= 5 else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and reports for files that load in milliseconds."""
    from transformers import utils

    logging: Any = utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
