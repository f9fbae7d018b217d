"""From a word of the configuration to the device that tensors live on, and what that device is fast at."""

from __future__ import annotations

import os

import torch

from mrse.config import Device
from mrse.errors import ConfigError

CPU = torch.device("cpu")
_AMPERE = (8, 0)


def pick(wanted: Device) -> torch.device:
    """The device to use; where a launcher started several processes, each has its own GPU, by `LOCAL_RANK`.

    Args:
        wanted: `cpu`, `cuda`, or `auto`: a GPU where torch finds one.

    Raises:
        ConfigError: there is no GPU, or none for this process.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device: cuda, but torch {torch.__version__} finds no GPU here; set it to auto or cpu, or mend the driver "
            "or the build of torch (`python -c 'import torch; torch.cuda.init()'` says what is wrong)"
        )
    place, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= found:
        raise ConfigError(
            f"device: {wanted}: process {place} of this machine has no GPU of its own, there are {found}; "
            "start as many processes as there are GPUs, or set it to cpu"
        )
    return torch.device("cuda", place)


def fast_at_bfloat16(device: torch.device) -> bool:
    """Whether it multiplies in bfloat16: GPUs from Ampere on, CPUs with instructions for it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _AMPERE
    abilities = torch.cpu.get_capabilities()
    return any(bool(abilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
