"""What an image encoder costs on a device: numbers, arithmetic, operators, memory and time.

Shapes: S side of a picture.
"""

import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.result import seconds

PASSES = 100


def num_parameters(encoder: nn.Module) -> int:
    """Of a folded encoder: all that is left of it."""
    return sum(value.numel() for value in encoder.parameters())


def num_flops(encoder: nn.Module, side: int) -> int:
    """Of one picture, two for a multiply-add: convolutions and matrix products; norms and activations are not counted."""
    # the counter does not know the fused attention of CPUs: taken apart, it is matrix products
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 3, side, side))
    return int(counter.get_total_flops())


def operators(model: Path) -> Counter[str]:
    """How many of each operator a model file holds."""
    return Counter(node.op_type for node in onnx.load(model).graph.node)


def num_stored(model: Path) -> int:
    """Numbers in a model file: parameters, label features and constants."""
    return sum(int(np.prod(value.dims)) for value in onnx.load(model).graph.initializer)


def session_of(model: Path) -> onnxruntime.InferenceSession:
    """On the CPU, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def passes(model: Path, side: int) -> Callable[[], float]:
    """Seconds of one picture through the file, one thread, the mean of some."""
    run = partial(session_of(model).run, None, {"images": np.zeros((1, 3, side, side), dtype=np.float32)})
    run()

    def timed() -> float:
        return seconds(lambda: [run() for _ in range(PASSES)]) / PASSES

    return timed


def peak_memory(model: Path, side: int, *, processes: int) -> int:
    """Bytes of a session at its peak, `_session_memory` says which; the median of several processes."""
    command = [sys.executable, "-m", "tests.benchmarks._session_memory", str(model), str(side)]
    root = Path(__file__).parents[2]
    found = [subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return int(statistics.median(int(one.stdout) for one in found))
