"""A bundle as an MLflow model: MLflow runs this file to load it ("models from code"), so nothing is pickled.

Input: a column `image` of JPEG, PNG or WebP bytes.  Parameter `labels`: the class names.  Output: best label and its score.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from training.bundle import load_bundle
from training.preprocess import preprocess
from training.specialize import specialize

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.binary, "image")]),
    outputs=Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.double, "score")]),
    params=ParamSchema([ParamSpec("labels", DataType.string, ["cat", "dog"], shape=(-1,))]),
)


class HyperClipModel(mlflow.pyfunc.PythonModel):
    """Specializes for the given labels and classifies."""

    def load_context(self, context: Any) -> None:
        self._bundle = load_bundle(Path(context.artifacts["bundle"]))

    # no type hints: MLflow reads them as a schema of its own
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        encoder = specialize(self._bundle, list((params or {}).get("labels", ["cat", "dog"])))
        pictures = [preprocess(bytes(data), self._bundle.preprocess) for data in model_input["image"]]
        scores = encoder.scores(self._bundle, torch.stack([torch.from_numpy(picture) for picture in pictures]))
        best = scores.softmax.max(dim=1)
        labels = [encoder.task.labels[place] for place in best.indices.tolist()]
        return pd.DataFrame({"label": labels, "score": best.values.tolist()})


mlflow.models.set_model(HyperClipModel())
