"""A specialized encoder as an ONNX package: a plain classifier for a device, with no hypernetwork and nothing of ours in it.

model.onnx        images (N, 3, S, S) -> scores (N, C), match (N, C), image_features (N, D); its metadata holds the rest
labels.json       the labels in the order of the scores, and what the best match says of "none of these"
preprocess.json   from a picture to the input
certificate.json  how far the file is from the model it was made from
README.md         how to use it with ONNX Runtime, Pillow and numpy alone

A package exists only if parity held: it is measured on the bytes before anything is written.
"""

import copy
import hashlib
import io
import json
import secrets
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from infra import storage
from infra.config import StrictModel
from infra.errors import BadInputError, ParityError
from training.bundle import Bundle
from training.fold import fold_image_encoder
from training.model.image_encoder import ImageEncoder
from training.model.parameter_delta import GroupDelta
from training.none_of_these import NoneOfTheseOfMatch
from training.onnx_graph import OUTPUT_NAMES, EdgeModel, OnnxGraph
from training.package_readme import package_readme
from training.parity import Outputs, ParityCertificate, certify, random_inputs
from training.preprocess import PreprocessConfig, preprocess
from training.score import class_scores
from training.specialize import SpecializedEncoder

MODEL_NAME = "model.onnx"
METADATA_PREFIX = "hyperclip."

Fold = Callable[[ImageEncoder, Tensor], nn.Module]


class PackageLabels(StrictModel):
    """`labels.json`."""

    schema_version: Literal[1] = 1
    labels: tuple[str, ...]
    """In the order of the scores."""
    templates: tuple[str, ...]
    bundle_digest: str
    """The model the package was made from: with the labels, all that is needed to make it again."""
    none_of_these: NoneOfTheseOfMatch | None = None
    """How likely a picture shows none of the labels, by its best `match`; None where the model was not calibrated."""


class PackagePreprocess(PreprocessConfig):
    """`preprocess.json`."""

    schema_version: Literal[1] = 1
    steps: tuple[str, ...] = (
        "upright, as its EXIF orientation says",
        "RGB, transparency laid over background",
        "central square, resampled once to image_size (bicubic, antialiased)",
        "divide by 255, subtract mean, divide by std",
        "channels first, float32",
    )


@dataclass(frozen=True)
class ExportReport:
    """What an export made."""

    path: Path
    num_labels: int
    model_bytes: int
    """Size of `model.onnx`."""
    certificate: ParityCertificate


def export_package(
    bundle: Bundle,
    encoder: SpecializedEncoder,
    output: Path,
    *,
    pictures: Sequence[bytes] = (),
    fold: Fold = fold_image_encoder,
) -> ExportReport:
    """Write the package of a specialized encoder into a new folder.

    Args:
        bundle: the model that made `encoder`.
        output: absent or an empty folder; it appears whole or not at all.
        pictures: encoded pictures to measure parity on, beside the fixed random inputs.
        fold: how the delta gets into the weights.

    Raises:
        BadInputError: the output is in use, `encoder` was made by another model, or a picture cannot be read.
        ParityError: the file does not compute what the model computes; nothing was written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInputError(f"{output} exists and is not an empty folder; a package gets a folder of its own")
    files, certificate = Packager(bundle, fold=fold).files(encoder, pictures=pictures)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        for name, data in files.items():
            storage.write_atomic(str(temporary / name), data)
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ExportReport(output, len(encoder.task.labels), len(files[MODEL_NAME]), certificate)


class Packager:
    """Makes the packages of one model, for one thread; the first takes seconds, as the graph is traced for it."""

    def __init__(self, bundle: Bundle, *, fold: Fold = fold_image_encoder) -> None:
        """Args: fold, how the delta gets into the weights."""
        self._bundle, self._fold = bundle, fold
        self._graph: OnnxGraph | None = None

    def zipped(self, encoder: SpecializedEncoder) -> bytes:
        """A package as one file; errors as `files`."""
        files, _ = self.files(encoder)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, data in files.items():  # ZipInfo carries no time: same task, same bytes
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        return buffer.getvalue()

    @torch.no_grad()
    def files(
        self, encoder: SpecializedEncoder, *, pictures: Sequence[bytes] = ()
    ) -> tuple[dict[str, bytes], ParityCertificate]:
        """Every file of a package whose parity holds.

        Args:
            encoder: made by this model.
            pictures: encoded pictures to measure parity on, beside the fixed random inputs.

        Raises:
            BadInputError: `encoder` was made by another model, or a picture cannot be read.
            ParityError: `model.onnx` does not compute what the model computes.
        """
        bundle = self._bundle
        if encoder.task.bundle_digest != bundle.digest:
            made_by = encoder.task.bundle_digest[:12]
            raise BadInputError(f"the encoder was made by model {made_by}, not by {bundle.digest[:12]}; specialize again")
        images = [torch.from_numpy(preprocess(picture, bundle.preprocess))[None] for picture in pictures]
        # a copy: a forward pass leaves its delta in the layers, and the model may be serving others meanwhile
        functional = copy.deepcopy(bundle.model.image_encoder).cpu().eval()
        edge = EdgeModel(self._fold(functional, encoder.delta.cpu()), encoder).eval().requires_grad_(False)
        size = bundle.preprocess.image_size
        metadata = _metadata(bundle, encoder)
        self._graph = self._graph or OnnxGraph(edge, size)
        model = self._graph.filled(edge, metadata)
        session = _session(model)
        _check_metadata(session, metadata)

        def run_functional(images: Tensor) -> Outputs:
            features = functional(images, GroupDelta(encoder.delta.cpu()[None]))
            scores = class_scores(features, edge.text_features, logit_scale=edge.logit_scale, logit_bias=edge.logit_bias)
            return Outputs(scores.softmax.numpy(), scores.match.numpy(), features.numpy())

        certificate = certify(
            torch.cat([random_inputs(size), *images]),
            functional=run_functional,
            folded=lambda batch: Outputs(*(value.numpy() for value in edge(batch))),
            onnx=lambda batch: Outputs(*session.run(OUTPUT_NAMES, {"images": batch.numpy()})),
            text_features=edge.text_features,
            num_pictures=len(pictures),
            model_sha256=hashlib.sha256(model).hexdigest(),
            bundle_digest=bundle.digest,
            versions={"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        )
        labels = _labels(bundle, encoder)
        texts = {
            "labels.json": labels.model_dump_json(indent=1),
            "preprocess.json": _preprocess(bundle).model_dump_json(indent=1),
            "certificate.json": certificate.model_dump_json(indent=1),
            "README.md": package_readme(
                certificate,
                image_size=size,
                embed_dim=edge.text_features.shape[1],
                num_generated=bundle.model.num_generated,
                none_of_these=labels.none_of_these,
            ),
        }
        return {MODEL_NAME: model, **{name: text.encode() for name, text in texts.items()}}, certificate


def _session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # spinning threads beside torch's own are far slower than one
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _labels(bundle: Bundle, encoder: SpecializedEncoder) -> PackageLabels:
    task = encoder.task
    calibration = bundle.none_of_these
    return PackageLabels(
        labels=task.labels,
        templates=task.templates,
        bundle_digest=task.bundle_digest,
        none_of_these=calibration and calibration.of_match(num_labels=len(task.labels), parameters="specialized"),
    )


def _preprocess(bundle: Bundle) -> PackagePreprocess:
    return PackagePreprocess(**bundle.preprocess.model_dump())


def _metadata(bundle: Bundle, encoder: SpecializedEncoder) -> dict[str, str]:
    values = {
        "schema_version": 1,
        "labels": list(encoder.task.labels),
        "templates": list(encoder.task.templates),
        "preprocess": _preprocess(bundle).model_dump(mode="json"),
        "bundle_digest": bundle.digest,
    }
    return {
        METADATA_PREFIX + name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }


def _check_metadata(session: Any, expected: dict[str, str]) -> None:
    """The runtime must give back what was put in, the labels above all."""
    found = session.get_modelmeta().custom_metadata_map
    wrong = sorted(name for name, value in expected.items() if found.get(name) != value)
    if wrong:
        raise ParityError(
            f"the exported model gives back other metadata than was written: {', '.join(wrong)}. Nothing was written"
        )
