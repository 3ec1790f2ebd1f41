"""Is the run still sound?  Losses and gradient norms stay on the device; all ranks look at them together now and then.

Every rank sees the same figures, so all of them stop at the same place and none is left waiting for another.
Shapes: R ranks, W steps since the last check.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from infra.errors import HyperClipError
from training.shard_reader import ShardReader

NAMED_SAMPLES = 5
"""Samples of a bad step that are named, per rank."""


class StoppedError(HyperClipError):
    """A rank had to stop for a reason that may pass, such as a store that did not take a checkpoint: worth another attempt."""


class HealthWindow:
    """The steps since the last check."""

    def __init__(self, reader: ShardReader, *, first_step: int, device: torch.device) -> None:
        self._reader = reader
        self._first_step = first_step
        self._device = device
        self._losses: list[Tensor] = []
        self._grad_norms: list[Tensor] = []
        self._samples: list[Tensor] = []

    def add(self, *, loss: Tensor, grad_norm: Tensor, samples: Tensor) -> None:
        """Remember one step without waiting for the device.

        Args:
            loss: () this rank's.
            samples: (B,) int64 numbers of this rank's samples in the shards.
        """
        self._losses.append(loss)
        self._grad_norms.append(grad_norm.to(self._device))
        self._samples.append(samples)

    def check(self, *, problem: str | None = None) -> float:
        """Compare notes with all ranks; every rank must call it.  Returns the last step's loss, the mean over ranks;
        NaN where there was no step since the last check.

        Args:
            problem: why this rank cannot go on, for a reason of its own.

        Raises:
            HyperClipError: a loss or a gradient was not finite.
            StoppedError: a rank has a problem.
        """
        failed = torch.tensor(float(problem is not None), device=self._device)
        notes = _all_ranks(torch.stack([*self._losses, *self._grad_norms, failed]))  # (R, 2W + 1)
        losses, grad_norms, failures = notes.cpu().split([len(self._losses), len(self._losses), 1], dim=1)
        if bool(failures.any()):
            ranks = [rank for rank, found in enumerate(failures[:, 0].tolist()) if found]
            raise StoppedError(problem or f"rank {ranks[0]} had to stop; its log says why")
        finite = torch.isfinite(losses) & torch.isfinite(grad_norms)  # (R, W)
        if not bool(finite.all()):
            self._refuse(losses, grad_norms, finite)
        self._first_step += len(self._losses)
        self._losses, self._grad_norms, self._samples = [], [], []
        return float(losses[:, -1:].mean())

    def _refuse(self, losses: Tensor, grad_norms: Tensor, finite: Tensor) -> None:
        place = int((~finite.all(dim=0)).nonzero()[0])
        bad_loss = [rank for rank, loss in enumerate(losses[:, place].tolist()) if not math.isfinite(loss)]
        samples = _all_ranks(self._samples[place].to(self._device)).cpu()  # (R, B)
        values = ", ".join(
            f"rank {rank} loss {loss:g} gradient norm {norm:g}"
            for rank, (loss, norm) in enumerate(zip(losses[:, place].tolist(), grad_norms[:, place].tolist(), strict=True))
        )
        suspects = bad_loss or range(len(samples))
        uids = "; ".join(
            f"rank {rank}: {', '.join(self._reader[index][1].uid for index in samples[rank, :NAMED_SAMPLES].tolist())}"
            for rank in suspects
        )
        what = "loss" if bad_loss else "gradient"
        raise HyperClipError(
            f"the {what} of step {self._first_step + place} is not finite ({values}). Its samples: the first {NAMED_SAMPLES} "
            f"of {samples.shape[1]} of {uids}. Look at them, or lower optimizer.learning_rate; no checkpoint was written since"
        )


def _all_ranks(value: Tensor) -> Tensor:
    """(...) -> (R, ...)"""
    found = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(found, value)
    return torch.stack(found)
