"""The ONNX graph of a specialized encoder: traced once for a model, filled with the weights of one task after another.

Tracing takes seconds, and only the weights differ between the tasks of a model.  So the weights are inputs while the graph is
traced: nothing that is computed from them can end up in it as a constant.  To fill it is to make them initializers.
Shapes: N images, C labels, D embedding, S image size.
"""

import copy
import threading
import warnings
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from training.score import class_scores
from training.specialize import SpecializedEncoder

OUTPUT_NAMES = ("scores", "match", "image_features")

_tracing = threading.Lock()
"""torch.export keeps global state while it traces."""


class EdgeModel(nn.Module):
    """What is exported: folded encoder, label features and scoring in one."""

    label_columns: Tensor
    logit_scale: Tensor
    logit_bias: Tensor

    def __init__(self, image_encoder: nn.Module, encoder: SpecializedEncoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        # (D, C), as the product reads them, so that no device has to transpose
        self.register_buffer("label_columns", encoder.text_features.detach().cpu().float().T.contiguous())
        for name in ("logit_scale", "logit_bias"):
            self.register_buffer(name, getattr(encoder, name).detach().cpu().float())

    @property
    def text_features(self) -> Tensor:
        """(C, D)."""
        return self.label_columns.T

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, S, S) -> scores (N, C), match (N, C), image_features (N, D)."""
        features = self.image_encoder(images)
        scores = class_scores(features, self.text_features, logit_scale=self.logit_scale, logit_bias=self.logit_bias)
        return scores.softmax, scores.match, features


class OnnxGraph:
    """The graph of one model, without weights."""

    def __init__(self, edge: EdgeModel, image_size: int) -> None:
        """Trace it; the weights of `edge` do not matter, nor does the number of its labels."""
        weights = edge.state_dict()
        weights["label_columns"] = torch.zeros(len(edge.label_columns), 2)  # a size of one would be taken for a constant
        dynamic: dict[str, Any] = dict.fromkeys(weights)
        dynamic["label_columns"] = {1: "C"}
        with _tracing, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own use of its deprecated functions
            program = torch.onnx.export(
                _WithWeights(edge),
                (torch.zeros(2, 3, image_size, image_size),),
                kwargs={"weights": weights},
                dynamo=True,
                input_names=["images", *weights],
                output_names=list(OUTPUT_NAMES),
                dynamic_shapes={"images": {0: "N"}, "weights": dynamic},
                verbose=False,
            )
        assert program is not None
        self._model = program.model_proto
        _strip(self._model)
        used = {name for node in self._model.graph.node for name in node.input}
        self._weights = [name for name in weights if name in used]
        for given in list(self._model.graph.input):
            if given.name != "images":
                self._model.graph.input.remove(given)

    def filled(self, edge: EdgeModel, metadata: dict[str, str]) -> bytes:
        """The file of one task: weights inside, any batch size, `metadata` in its properties."""
        model, weights = copy.deepcopy(self._model), edge.state_dict()
        model.graph.initializer.extend(onnx.numpy_helper.from_array(weights[name].numpy(), name) for name in self._weights)
        for value in (*model.graph.value_info, *model.graph.output):
            for size in value.type.tensor_type.shape.dim:
                if size.dim_param == "C":
                    size.dim_value = edge.label_columns.shape[1]
        onnx.helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())


class _WithWeights(nn.Module):
    """A model whose weights are arguments."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = [model]  # hidden from torch, which would take its weights too

    def forward(self, images: Tensor, weights: dict[str, Tensor]) -> Any:
        return torch.func.functional_call(self._model[0], weights, (images,))


def _strip(model: Any) -> None:
    """Drop what the exporter notes for debugging: a tenth of a small file, with stack traces and paths of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
