"""Peak memory and time of the loss, forward and backward: ours, the plain formula, and blocks without recomputation.

- *plain*: the reference, `siglip_loss`, with its dense masks.
- *chunked*: the plain formula over chunks of texts under autograd, which keeps the logits of every chunk for backward: what
  open_clip's main branch does.
- *ours*: `ring_siglip_loss` on one rank.

Each measurement is a process of its own: memory is the growth of its peak over what it holds once the inputs exist, time is the
best of a few repetitions after a warm-up.  fp32, two threads.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.result import benchmark_arguments, benchmark_result, environment, interleaved, measure, seconds, spread
from training.loss import PairIds, positive_pairs, siglip_loss
from training.ring_loss import BLOCK, ring_siglip_loss

NAME = "loss_memory"
EMBED_DIM = 512
CHUNKS = 8
THREADS = 2
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, PairIds]


def plain(images: Tensor, texts: Tensor, logit_scale: Tensor, logit_bias: Tensor, pairs: PairIds) -> Tensor:
    positive = positive_pairs(pairs, pairs)
    return siglip_loss(images, texts, logit_scale=logit_scale, logit_bias=logit_bias, positive=positive)


def chunked(images: Tensor, texts: Tensor, logit_scale: Tensor, logit_bias: Tensor, pairs: PairIds) -> Tensor:
    columns = torch.arange(len(texts)).chunk(CHUNKS)
    losses = [
        siglip_loss(
            images,
            texts[some],
            logit_scale=logit_scale,
            logit_bias=logit_bias,
            positive=positive_pairs(pairs, pairs[some]),
        )
        for some in columns
    ]
    return torch.stack(losses).sum()


def ours(images: Tensor, texts: Tensor, logit_scale: Tensor, logit_bias: Tensor, pairs: PairIds) -> Tensor:
    return ring_siglip_loss(images, texts, logit_scale=logit_scale, logit_bias=logit_bias, images=pairs, texts=pairs)


LOSSES: dict[str, Callable[..., Tensor]] = {"plain": plain, "chunked": chunked, "ours": ours}


def inputs(batch_size: int) -> Inputs:
    """Every caption its own text, three captions a concept."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (
        F.normalize(torch.randn(batch_size, EMBED_DIM, generator=generator), dim=-1).requires_grad_() for _ in range(2)
    )
    ids = torch.arange(batch_size)
    scalars = (torch.tensor(value, requires_grad=True) for value in (10.0, -10.0))
    return images, texts, *scalars, PairIds(ids, ids // 3, None)


def run_once(loss: str, batch: Inputs) -> list[Tensor]:
    value = LOSSES[loss](*batch)
    value.backward()
    leaves = batch[:4]
    found = [value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
    for leaf in leaves:
        leaf.grad = None
    return found


def peak_mib(loss: str, batch_size: int) -> float:
    """In this process, which must be a fresh one: a peak never falls again."""
    run_once(loss, inputs(64))  # libraries and thread pools are loaded before we count
    batch = inputs(batch_size)
    before = _peak_mib()
    run_once(loss, batch)
    return _peak_mib() - before


def best_seconds(loss: str, batch_size: int) -> float:
    batch = inputs(batch_size)
    run_once(loss, batch)
    return min(seconds(lambda: run_once(loss, batch)) for _ in range(2))


MEASURED: dict[str, Callable[[str, int], float]] = {"memory": peak_mib, "time": best_seconds}


def in_fresh_process(what: str, loss: str, batch_size: int) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.loss_memory", "--measure", what, loss, str(batch_size)]
    # the allocator gives large blocks back, so that the peak is what is held and not what was once held
    environ = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    if what == "time":
        environ = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}  # as it is used
    run = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
    return float(json.loads(run.stdout.splitlines()[-1]))


def main() -> int:
    if sys.argv[1:2] == ["--measure"]:
        what, loss, size = sys.argv[2:5]
        torch.set_num_threads(THREADS)
        print(json.dumps(MEASURED[what](loss, int(size))))
        return 0
    quick = benchmark_arguments(__doc__ or NAME).quick
    batch_size = 4096 if quick else 8192
    found = {
        what: interleaved(
            {loss: lambda what=what, loss=loss: in_fresh_process(what, loss, batch_size) for loss in LOSSES},
            rounds=rounds,
        )
        for what, rounds in (("memory", 1 if quick else 3), ("time", 2 if quick else 5))
    }
    memory = {loss: statistics.median(values) for loss, values in found["memory"].items()}
    time_s = {loss: min(values) for loss, values in found["time"].items()}
    torch.set_num_threads(THREADS)
    return benchmark_result(
        NAME,
        ratio=memory["ours"] / memory["plain"],
        goal=("<=", 1 / 8),
        measures={
            "memory_over_plain": measure(memory["ours"] / memory["plain"], goal=("<=", 1 / 8)),
            "memory_over_chunked": measure(memory["ours"] / memory["chunked"], goal=("<=", 1 / 3)),
            "time_over_plain": measure(time_s["ours"] / time_s["plain"], goal=("<=", 1.15)),
            "time_over_chunked": measure(time_s["ours"] / time_s["chunked"]),
            "largest_error": measure(_largest_error("ours", 512), goal=("<=", 1e-6)),
            "largest_error_of_plain": measure(_largest_error("plain", 512)),
        },
        peak_mib={loss: spread(values) for loss, values in found["memory"].items()},
        seconds={loss: spread(values) for loss, values in found["time"].items()},
        sizes={"batch": batch_size, "embed_dim": EMBED_DIM, "block": BLOCK, "chunks_of_chunked": CHUNKS, "threads": THREADS},
        **environment("torch"),
    )


def _largest_error(loss: str, batch_size: int) -> float:
    """Of loss and gradients against the plain formula in double precision, as a share of the largest value of each."""
    *leaves, pairs = inputs(batch_size)
    exact = run_once("plain", (*(leaf.detach().double().requires_grad_() for leaf in leaves), pairs))
    found = run_once(loss, inputs(batch_size))
    return max(float((mine - other).abs().max() / other.abs().max()) for mine, other in zip(found, exact, strict=True))


def _peak_mib() -> float:
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    sys.exit(main())
