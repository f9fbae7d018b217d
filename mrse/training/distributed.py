"""One training run on many processes, of one machine or of several, with the gradient of one process.

What a step works on follows from (seed, step), so every process draws the same batch. Each sends its share of the texts
and pictures through the experts, the outputs are gathered, and every process computes the loss of the whole batch:
negatives are shared, whoever encoded them. Each counts that loss as one part in W, and gradients are summed wherever
processes meet: in the backward pass of the gathering, and over the parameters. So what only one process computes counts
once, and what all compute counts W times 1/W.

Random bits inside the experts are a process's own. All others are drawn alike by all: what they share stays one.

Shapes: W processes, B rows of a batch, S rows of one process, E experts, H hidden, R rows of a table.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mrse.device import CPU
from mrse.errors import DataError, MrseError, TrainingFailed

T = TypeVar("T")

_GO_ON = "run again: training goes on from the last checkpoint"


@dataclass(frozen=True)
class World:
    """The processes that train one model together. Of size 1 it does nothing.

    Every method but `share` must be called by all processes in the same order.

    Attributes:
        rank: which process this is, from 0.
        size: W.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes: checkpoints, the package, the MLflow run, progress."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This process's part of `rows` rows: in order of rank all of them, each once, sizes equal but for one."""
        return slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)

    def encode(self, encode: Callable[[slice, slice], Tensor], queries: int, items: int) -> tuple[Tensor, Tensor]:
        """Encode a batch together, every process its share of the queries, of which there is one at least, and of the
        items: an item takes longer than a query.

        Args:
            encode: some queries, then some items, at least one row, as `(rows, E, H)`.
            queries: B.
            items: P.

        Returns:
            `(B, E, H)` and `(P, E, H)` on every process. In the backward pass each gets the gradient of its own rows,
            summed over all.
        """
        if self.size == 1:
            own_XEH = encode(slice(0, queries), slice(0, items))
            return own_XEH[:queries], own_XEH[queries:]
        of_queries, of_items = self.share(queries), self.share(items)
        asked, all_rows = _rows(of_queries), _rows(of_queries) + _rows(of_items)
        with _own_random_bits(self.rank):
            # Without a row of its own it still takes part in the backward pass, for which the others wait.
            own_XEH = encode(of_queries, of_items) if all_rows else encode(slice(0, 1), slice(0, 0))[:0]
        query_BEH: Tensor = _Gathered.apply(own_XEH[:asked], self, of_queries.start)  # type: ignore[no-untyped-call]
        item_PEH: Tensor = _Gathered.apply(own_XEH[asked:], self, of_items.start)  # type: ignore[no-untyped-call]
        return query_BEH, item_PEH

    def gather(self, own: Tensor) -> Tensor:
        """The rows of all processes in order of rank, without gradient; each may have another number of rows."""
        if self.size == 1:
            return own
        rows_W = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _meeting():
            dist.all_gather(rows_W, torch.tensor([len(own)]))
        most = int(max(rows_W))
        padded = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with _meeting():
            dist.all_gather(parts, padded)
        return torch.cat([part[: int(rows)] for part, rows in zip(parts, rows_W, strict=True)])

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes, the same to the bit on each."""
        if self.size == 1:
            return x
        total = x.clone(memory_format=torch.contiguous_format)
        with _meeting():
            dist.all_reduce(total)
        return total

    def backward(self, loss: Tensor, dense: Sequence[nn.Parameter], tables: Sequence[Tensor]) -> None:
        """Put the gradient of a loss that all processes computed alike into the parameters.

        Args:
            loss: a scalar.
            dense: parameters with dense gradients; one that no process used keeps None.
            tables: `(R, H)` parameters with sparse gradients, used by every process.
        """
        (loss / self.size).backward()  # type: ignore[no-untyped-call]
        if self.size == 1:
            return
        self._sum_dense(dense)
        for table in tables:
            self._sum_sparse(table)

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, handed to all as JSON: nothing is unpickled."""
        if self.size == 1:
            return make()
        made = json.dumps(make()).encode() if self.first else b""
        size = torch.tensor([len(made)])
        with _meeting():
            dist.broadcast(size, src=0)
        text = torch.tensor(list(made), dtype=torch.uint8) if self.first else torch.empty(int(size), dtype=torch.uint8)
        with _meeting():
            dist.broadcast(text, src=0)
        handed: T = json.loads(text.numpy().tobytes())
        return handed

    def tensors_from_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first process's tensors, on the CPU, handed to all; the others' are ignored."""
        if self.size == 1:
            return dict(tensors)
        names, dtypes, shapes = self.from_first(
            lambda: (
                list(tensors),
                [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
                [list(tensor.shape) for tensor in tensors.values()],
            )
        )
        handed = {
            name: tensors[name] if self.first else torch.empty(shape, dtype=getattr(torch, dtype))
            for name, dtype, shape in zip(names, dtypes, shapes, strict=True)
        }
        with _meeting():
            for tensor in handed.values():
                dist.broadcast(tensor, src=0)
        return handed

    def copy_weights(self, model: nn.Module) -> None:
        """Give all processes the first one's weights: the same seed need not give the same bits on another CPU."""
        if self.size == 1:
            return
        with _meeting():
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def check_same(self, value: str, what: str) -> None:
        """Make sure that all processes hold one value.

        Raises:
            DataError: naming the processes that hold another one than the first.
        """
        if self.size == 1:
            return
        digest = torch.tensor(list(hashlib.sha256(value.encode()).digest()), dtype=torch.uint8)
        held_WX = self.gather(digest[None])
        others = [str(rank) for rank, other_X in enumerate(held_WX) if not torch.equal(other_X, held_WX[0])]
        if others:
            raise DataError(
                f"{what} differ between process 0 and process {', '.join(others)}; "
                "give every machine the same checkout, params.yaml and data"
            )

    def _sum_dense(self, parameters: Sequence[nn.Parameter]) -> None:
        """One message for all: the gradients, then whether each parameter has one."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=gradients[0].device)
        total = self.sum(torch.cat([*(gradient.flatten() for gradient in gradients), used]))
        sizes = [parameter.numel() for parameter in parameters]
        *sums, used = torch.split(total, [*sizes, len(parameters)])
        for parameter, gradient, users in zip(parameters, sums, used.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter) if users else None

    def _sum_sparse(self, table: Tensor) -> None:
        """All touched rows; rows that several processes touched come several times, which is their sum."""
        assert table.grad is not None
        own = table.grad.coalesce()
        rows_R, values_RH = self.gather(own.indices()[0]), self.gather(own.values())
        everyone = torch.sparse_coo_tensor(rows_R[None], values_RH, table.shape, check_invariants=False)
        table.grad = everyone.coalesce()


def _rows(some: slice) -> int:
    return int(some.stop - some.start)


ALONE = World()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own_SEH: Tensor, world: World, start: int) -> Tensor:
        ctx.world, ctx.own = world, slice(start, start + len(own_SEH))
        return world.gather(own_SEH)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_BEH,) = grads
        return ctx.world.sum(grad_BEH)[ctx.own], None, None


def start(processes: int, module: str, *arguments: str) -> None:
    """Run a module on several processes of this machine as torchrun does, and wait until all have ended.

    Their threads (`OMP_NUM_THREADS`) are this process's, shared out, where the environment does not say otherwise.

    Raises:
        TrainingFailed: one has failed or this process was told to stop; all are ended.
    """
    # A third of a second that only a launcher needs.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)  # told below
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(settings, sys.executable)("-m", module, *arguments)
    except SignalException as error:
        raise TrainingFailed(f"stopped by {error.sigval.name}; {_GO_ON}") from None
    except ChildFailedError as error:
        # Once one has ended the others are, by SIGTERM; one that was killed may first have made another fail.
        rank, failure = min(error.failures.items(), key=lambda f: (f[1].exitcode == -signal.SIGTERM, f[1].exitcode))
        if failure.exitcode > 0:
            raise TrainingFailed(f"process {rank} of {processes} has failed; its own message says why") from None
        raise TrainingFailed(f"process {rank} of {processes} was ended by {failure.signal_name()}; {_GO_ON}") from None


@contextmanager
def joined(timeout_seconds: float, device: torch.device = CPU) -> Iterator[World]:
    """The world that a launcher (torchrun) started this process in; alone without one.

    Progress of all processes but the first is silenced. Tensors on GPUs go by NCCL, all others by Gloo.

    Args:
        timeout_seconds: how long a process waits for another.
        device: this process's own.

    Raises:
        TrainingFailed: the others cannot be met.
        MrseError: raised inside, with this process's rank in front.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    except (RuntimeError, ValueError) as error:
        raise TrainingFailed(
            f"cannot meet the other processes of this training ({_first_line(error)}); start all of them with torchrun"
        ) from None
    world = World(dist.get_rank(), dist.get_world_size())
    if not world.first:
        os.environ["MRSE_QUIET"] = "1"
    try:
        yield world
    except MrseError as error:
        raise type(error)(f"process {world.rank} of {world.size}: {error}") from None
    finally:
        dist.destroy_process_group()


@contextmanager
def _meeting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Gloo's transport tells of a lost process by a plain RuntimeError that begins with its own file.
        if not (isinstance(error, dist.DistError) or "gloo/transport/" in str(error)):
            raise
        raise TrainingFailed(
            "another process of this training has ended, or did not answer within train.process_timeout_seconds "
            f"({_first_line(error)}); {_GO_ON}"
        ) from None


@contextmanager
def _own_random_bits(rank: int) -> Iterator[None]:
    """Other bits for each process inside; after it the shared stream goes on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, ())) + rank)
        yield


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
