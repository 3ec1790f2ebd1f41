"""Bytes that a session of ONNX Runtime takes at its peak, in a process of its own: `_session_memory MODEL SIDE` prints them.

Loading the file, optimizing it and some passes of one picture count; Python, numpy and the runtime's own libraries do not.
`ru_maxrss` would not do: a process starts with the peak of the one that started it, and its imports leave one as well.
Linux only.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

PASSES = 10


def memory(kind: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(f"{kind}:"))
    return int(found) * 1024


def peak_of_session(model: str, side: int) -> int:
    """Peak of a session beyond what the process had before it."""
    image = np.zeros((1, 3, side, side), dtype=np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
    before = memory("VmRSS")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(PASSES):
        session.run(None, {"images": image})
    return memory("VmHWM") - before


if __name__ == "__main__":
    print(peak_of_session(sys.argv[1], int(sys.argv[2])))
