"""Another device for a machine without a GPU: its numbers live in ordinary memory and may not be touched from there.

Inside `far_away` a tensor moved there is of another device for all of torch: mixing it with a CPU's tensor (but for a
scalar), indexing it with one or asking for its NumPy array fails, as on a GPU. Numbers are those of the CPU; torch's
dropout draws from a stream of the device's own, which `torch.manual_seed` starts too. Torch keeps such a device as long
as a process lives, so it wants a process of its own (`tests.processes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_NAME = "far"
_DRAWS = ("aten::bernoulli_.float", "aten::native_dropout")
_COPIES = ("aten::_to_copy", "aten::copy_")


class _Far(torch.Tensor):
    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> _Far:
        far = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride() if held.layout == torch.strided else None,
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(_NAME, 0),
        )
        far.held = held
        return far

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Generator(torch.Generator):
    """Of the CPU, whatever the device. A class, since torch's own annotations name it."""

    def __new__(cls, *_: Any) -> _Generator:
        return super().__new__(cls)


class _Module(backend_registration._DummyBackendModule):
    _initialized = True
    bits = torch.Generator().get_state()

    def device(self, _: int) -> AbstractContextManager[None]:
        return nullcontext()

    def manual_seed_all(self, seed: int) -> None:
        self.bits = torch.Generator().manual_seed(seed).get_state()

    def get_rng_state(self, _: Any = 0) -> torch.Tensor:
        return self.bits

    def set_rng_state(self, state: torch.Tensor, _: Any = 0) -> None:
        self.bits = state

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """From its own stream."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.bits)
            yield
            self.bits = torch.get_rng_state()

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_MODULE = _Module()


@contextmanager
def far_away() -> Iterator[torch.device]:
    """The device, which exists inside."""
    backend_registration._setup_privateuseone_for_python_backend(_NAME, _MODULE)
    bits = mock.patch("torch.Generator", _Generator)
    grads = mock.patch("torch.inference_mode", torch.no_grad)  # whose tensors know no subclass
    with _Factories(), bits, grads:
        yield torch.device(_NAME, 0)


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    far = [x for x in tensors if isinstance(x, _Far)]
    near = [x for x in tensors if not isinstance(x, _Far) and x.dim()]
    name = func.name()
    if far and near and name not in _COPIES:
        raise RuntimeError(f"{name}: tensors on two devices")
    goes_far = isinstance(args[0], _Far) if name == "aten::copy_" else bool(far)
    if kwargs.get("device") is not None:
        goes_far = torch.device(kwargs["device"]).type == _NAME
    with _MODULE.drawing() if goes_far and name in _DRAWS else nullcontext():
        out = func(*tree_map(_near, args), **tree_map(_near, kwargs))
    known = {id(x.held): x for x in far}

    def wrapped(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return known.get(id(x)) if id(x) in known else _Far(x) if goes_far else x

    return tree_map(wrapped, out)


def _near(x: Any) -> Any:
    if isinstance(x, _Far):
        return x.held
    return torch.device("cpu") if isinstance(x, torch.device) else x
