"""A model file in INT8: static quantization by ONNX Runtime, calibrated on pictures; and what a file answers.

Shapes: M pictures, S side of a picture.
"""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from tests.benchmarks._on_device import session_of

OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "GlobalAveragePool")
"""Computed in integers: convolutions and matrix products, and what stands between two of them.  Not the division by the length
of the features, and not the scores."""
AT_ONCE = 32


def quantize(model: Path, output: Path, *, calibration: np.ndarray) -> None:
    """Write the model with 8-bit weights, one scale for each output channel, and 8-bit activations.

    Args:
        model: as `export_package` writes it.
        calibration: (M, 3, S, S) pictures that show how large activations get.
    """
    with tempfile.TemporaryDirectory(prefix="hyperclip-int8-") as temporary:
        prepared = Path(temporary) / "prepared.onnx"
        quant_pre_process(model, prepared, skip_symbolic_shape=True)  # every shape but the batch is written in the file
        quantize_static(
            prepared,
            output,
            _Pictures(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(OPERATORS),
            nodes_to_exclude=_scoring(onnx.load(prepared).graph),
        )


def answers(model: Path, images: np.ndarray) -> np.ndarray:
    """(M, 3, S, S) -> (M,) place of the first label of each picture."""
    session = session_of(model)
    return np.concatenate([session.run(["scores"], {"images": part})[0].argmax(axis=1) for part in _parts(images)])


class _Pictures(CalibrationDataReader):
    def __init__(self, images: np.ndarray) -> None:
        self._parts = iter(_parts(images))

    def get_next(self) -> dict[str, np.ndarray] | None:
        part = next(self._parts, None)
        return None if part is None else {"images": part}


def _parts(images: np.ndarray) -> list[np.ndarray]:
    return np.array_split(images, math.ceil(len(images) / AT_ONCE))


def _scoring(graph: Any) -> list[str]:
    """Names of the nodes that come after the features, in a graph in the order of its computation."""
    reached, found = {"image_features"}, []
    for node in graph.node:
        if reached & set(node.input):
            reached |= set(node.output)
            found.append(node.name)
    return found
