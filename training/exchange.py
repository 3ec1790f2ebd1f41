"""What ranks pass to each other: values, rows with their gradient, and blocks round a ring.

*Dealt* rows lie on the ranks as cards are dealt: row t of the whole is row t // W of rank t % W, every rank holds equally many
(the last ones may be padding), and the first M rows of the whole are the first ceil(M / W) of every rank.
Without a process group there is one rank and nothing is exchanged.  Shapes: W ranks, S rows of each rank.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Number of this rank, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Ranks in all, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_values(values: Tensor) -> Tensor:
    """(S, ...) on each rank -> (W * S, ...) on every rank, in rank order, without gradient."""
    if world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def from_first_rank(values: Tensor) -> Tensor:
    """The first rank's values on every rank, without gradient: for what must be equal to the bit to be agreed on."""
    values = values.detach()
    if world_size() == 1:
        return values
    values = values.clone(memory_format=torch.contiguous_format)
    dist.broadcast(values, src=0)
    return values


def dealt_share(num_rows: int) -> int:
    """S: how many rows each rank holds when `num_rows` are dealt."""
    return -(-num_rows // world_size())


def deal(rows: Tensor) -> Tensor:
    """(T, ...), the same on every rank -> (S, ...), those dealt to this rank; padding repeats the first row."""
    padding = rows[:1].expand(dealt_share(len(rows)) * world_size() - len(rows), *rows.shape[1:])
    return torch.cat([rows, padding])[rank() :: world_size()]


def gather_dealt(own: Tensor, num_rows: int) -> Tensor:
    """(S, D) dealt rows of each rank -> the first (num_rows, D) of the whole on every rank, with gradient to where they lie."""
    if world_size() == 1:
        return own[:num_rows]
    return gather_rows(own[: dealt_share(num_rows)]).unflatten(0, (world_size(), -1)).transpose(0, 1).flatten(0, 1)[:num_rows]


def gather_rows(own: Tensor) -> Tensor:
    """(S, D) on each rank -> (W * S, D) on every rank, in rank order, with gradient to where they lie."""
    if world_size() == 1:
        return own
    gathered: Tensor = _GatherRows.apply(own)
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        ctx.num_rows = len(rows)  # type: ignore[attr-defined]
        return gather_values(rows)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)  # every rank used the rows of every other
        num_rows: int = ctx.num_rows  # type: ignore[attr-defined]
        return total[rank() * num_rows :][:num_rows]


@dataclass(frozen=True)
class Arriving:
    """A block under way from the previous rank of the ring."""

    block: Tensor
    transfers: list[dist.Work]
    sent: Tensor
    """Kept alive until the transfer is over."""

    def wait(self) -> Tensor:
        """The block, once it is here."""
        for transfer in self.transfers:
            transfer.wait()
        return self.block


def pass_on(block: Tensor) -> Arriving:
    """Start sending a block to the next rank of the ring and receiving one of the same shape from the previous rank."""
    if world_size() == 1:
        return Arriving(block, [], block)
    block = block.contiguous()
    received = torch.empty_like(block)
    transfers = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, block, (rank() + 1) % world_size()),
            dist.P2POp(dist.irecv, received, (rank() - 1) % world_size()),
        ]
    )
    return Arriving(received, transfers, block)
