"""The processes that train together. Alone, every method is the identity; under `torchrun`, torch.distributed.

A method must be called by all processes, in the same order, with tensors of the same shape unless it says otherwise.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from isotrace.base.errors import RunError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # a process may harvest a block, or write a checkpoint, while the others wait
BUCKET_BYTES = 2**26


class World:
    """`rank` of `size` processes, joined when `torchrun` started them; each takes the GPU of its local rank.

    Raises RunError when they cannot reach each other, or when there are fewer GPUs than processes.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.size == 1 or dist.is_initialized():
            return
        backend, local = "gloo", int(os.environ.get("LOCAL_RANK", "0"))
        if torch.cuda.is_available():
            if local >= torch.cuda.device_count():
                raise RunError(f"there are {torch.cuda.device_count()} GPUs: start one process for each.")
            torch.cuda.set_device(local)
            backend = "cpu:gloo,cuda:nccl"
        try:
            dist.init_process_group(backend, timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"the processes cannot reach each other ({reason}): start them with torchrun.") from error

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            if len(bucket) == 1 and bucket[0].is_contiguous():
                dist.all_reduce(bucket[0])
                continue
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def mean_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its mean over the processes."""
        self.sum_(*tensors)
        if self.size > 1:
            for tensor in tensors:
                tensor /= self.size

    def any_(self, flags: Tensor) -> Tensor:
        """Logical or of bool flags over the processes."""
        if self.size == 1:
            return flags
        counts = flags.to(torch.uint8)
        dist.all_reduce(counts, dist.ReduceOp.MAX)
        return counts.bool()

    def max_(self, tensor: Tensor) -> None:
        """Replace the tensor by its maximum over the processes, element by element."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)

    def first_(self, *tensors: Tensor) -> None:
        """Replace each tensor by that of process 0."""
        if self.size > 1:
            for tensor in tensors:
                whole = tensor.contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)

    def all(self, number: int) -> list[int]:
        """Every process's number, by rank."""
        return [int(found) for found in self.gather(torch.tensor([number]))]

    def least(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        return min(self.all(number))

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every process's tensor, by rank."""
        if self.size == 1:
            return [tensor]
        found = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(found, tensor.contiguous())
        return found

    def cat(self, tensor: Tensor) -> Tensor:
        """The processes' tensors, by rank, one after another along the first axis, whose lengths may differ."""
        if self.size == 1:
            return tensor
        lengths = self.all(len(tensor))
        if not max(lengths):
            return tensor
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        return torch.cat([part[:n] for part, n in zip(self.gather(padded), lengths, strict=True)])

    def same(self, value: T) -> T:
        """Process 0's picklable value."""
        values: list[Any] = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What the block raises in one process ends all: the others raise its message as a RunError, and none waits
        for one that gave up."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        messages: list[Any] = [failure and str(failure)] * self.size
        if self.size > 1:
            dist.all_gather_object(messages, failure and str(failure))
        if failure is not None:
            raise failure
        if any(messages):
            raise RunError(next(message for message in messages if message))

    def close(self) -> None:
        """Leave the group; to be called when all is done."""
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def _buckets(tensors: tuple[Tensor, ...]) -> Iterator[list[Tensor]]:
    """Views of neighbours of one kind, up to BUCKET_BYTES together: one reduction for many small tensors. Encoders
    lie transposed in memory, so their transposes are what can be reduced in place."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in (t.T if t.ndim == 2 and not t.is_contiguous() else t for t in tensors):
        n_bytes = tensor.numel() * tensor.element_size()
        if bucket and (size + n_bytes > BUCKET_BYTES or (tensor.dtype, tensor.device) != _kind(bucket[0])):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += n_bytes
    if bucket:
        yield bucket


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.device]:
    return tensor.dtype, tensor.device
