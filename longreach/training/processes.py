"""The processes that train one model together, and how the model is spread over them.

A program started by torchrun is one of several processes; any other is alone, and then nothing here communicates.
`ddp` keeps a whole copy of the model in every process; `fsdp` (Zhao et al. 2023, https://arxiv.org/abs/2304.11277, as
torch's `fully_shard`) keeps a shard of every parameter, its gradient and its optimiser state, and gathers one block at
a time.  gloo on CPUs, NCCL on GPUs.
"""

import gc
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from longreach.errors import InputError
from longreach.models import Block

T = TypeVar("T")
Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks to the user; exactly one does."""
        return self.rank == 0

    def sum(self, value: float | int) -> float:
        """The sum of every process's value, in float64."""
        if self.count == 1:
            return float(value)
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item()

    def share(self, value: T) -> T:
        """The first process's value, for all."""
        if self.count == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def collect(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        values: list[Any] = [value]
        if self.count > 1:
            values = [None] * self.count
            dist.all_gather_object(values, value)
        return values


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device named `cpu` or `cuda`, or for `auto` the better one that this machine has."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device is cuda, but torch finds no GPU here; use device cpu, or install a CUDA build of torch"
        )
    use_gpu = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, and leave them at the end; alone without torchrun.

    A distributed model must not outlive the block (so build it in a function that is called within): if it is the last
    to hold the group, its end waits for threads of gloo that wait for it, and the process hangs.
    """
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    here = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if count == 1:
        yield Processes(rank, count, here)
        return
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo")
    try:
        yield Processes(rank, count, here)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()  # see the docstring
        dist.destroy_process_group()


class Applied(nn.Module):
    """Calls any function of the model from within `forward`, which is where DDP and FSDP do their part."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., T], *arguments: object) -> T:
        """`function(model, *arguments)`."""
        return function(self.model, *arguments)


def distribute(model: nn.Module, processes: Processes, parallel: Parallel) -> nn.Module:
    """An `Applied` of the model, whose gradients are averages over the processes.

    `fsdp` cuts the parameters of `model` in place, each Block as one unit and what is left as another.
    """
    applied = Applied(model)
    if processes.count == 1:
        return applied
    if parallel == "ddp":
        return nn.parallel.DistributedDataParallel(applied, gradient_as_bucket_view=True)
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(applied, mesh=mesh)
    return applied


def exchange_gradients(applied: nn.Module, enabled: bool) -> None:
    """Whether the next `backward` averages gradients over the processes: once a step is enough, after its last part."""
    if isinstance(applied, nn.parallel.DistributedDataParallel):
        applied.require_backward_grad_sync = enabled
    elif isinstance(applied, FSDPModule):
        applied.set_requires_gradient_sync(enabled)


def reshard(applied: nn.Module) -> None:
    """Give back the parameters that a forward pass without a backward pass has gathered."""
    if isinstance(applied, FSDPModule):
        applied.reshard()


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be cut into shards."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be cut into shards, on the CPU.  Every process has to call it."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu().contiguous()


def like_shards(tensor: Tensor, example: Tensor) -> Tensor:
    """`tensor`, whole in every process, cut as `example` is.  The inverse of `full_tensor`."""
    if isinstance(example, DTensor):
        return distribute_tensor(tensor.to(example.device), example.device_mesh, example.placements)
    return tensor.to(example.device)
