"""From class names to a specialized encoder: one pass through text encoder and hypernetwork.

What comes out is small (a delta and the label features) and needs neither of them again.
Shapes: C labels, K templates, D embedding, P generated values.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.numpy import save
from safetensors.torch import load
from torch import Tensor

from infra import artefacts, storage
from infra.config import StrictModel
from infra.errors import BadInputError, CorruptArtefactError
from training.bounds import MAX_LABEL_CHARACTERS, MAX_SET_SIZE, MAX_TEMPLATES
from training.bundle import Bundle
from training.model.parameter_delta import GroupDelta
from training.score import Scores, class_scores
from training.tokenizer import CONTEXT_LENGTH, END_OF_TEXT

TASK_NAME = "task.json"
ENCODER_NAME = "encoder.safetensors"
TEXT_BATCH = 256
TEXTS_AT_ONCE = 16_384
"""Whose tokens are in memory together."""
LENGTH_STEP, MIN_ROWS = 8, 4
"""A text is padded to a multiple of so many tokens and never goes in fewer rows: then its features do not depend on its
neighbours.  Matrix products of fewer rows take other kernels, whose sums differ in the last bit."""
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Unicode's category Cc."""


class SpecializedTask(StrictModel):
    """What an encoder was specialized for, and by which model."""

    schema_version: Literal[1] = 1
    labels: tuple[str, ...]
    templates: tuple[str, ...]
    bundle_digest: str


class StoredTask(SpecializedTask):
    """`task.json`: the same, and the encoder that belongs to it."""

    encoder_sha256: str
    """Of `encoder.safetensors`."""


@dataclass(frozen=True)
class SpecializedEncoder:
    """An image encoder made for one list of labels."""

    task: SpecializedTask
    text_features: Tensor
    """(C, D) unit vectors, one per label."""
    delta: Tensor
    """(P,) flat, in the order of the encoder's layout."""
    logit_scale: Tensor
    """() already exponentiated."""
    logit_bias: Tensor
    """()."""

    def scores(self, bundle: Bundle, images: Tensor) -> Scores:
        """(B, 3, S, S) -> scores (B, C), by the functional path: the neutral encoder with this delta applied."""
        with torch.no_grad():
            features = bundle.model.encode_image(images, GroupDelta(self.delta[None]))
        return class_scores(features, self.text_features, logit_scale=self.logit_scale, logit_bias=self.logit_bias)


LabelEncoder = Callable[[Bundle, Sequence[str], Sequence[str]], Tensor]
"""Labels and templates -> (C, D), as `encode_labels`."""


@torch.no_grad()
def specialize(
    bundle: Bundle, labels: Sequence[str], templates: Sequence[str] | None = None, *, encode: LabelEncoder | None = None
) -> SpecializedEncoder:
    """Make the encoder for these labels; their order changes nothing but the order of the scores.

    Args:
        labels: 1 to 10,000 distinct names.
        templates: texts with one `{}` for the name; the bundle's own when absent.
        encode: `encode_labels`, or one that remembers what it gave before.

    Raises:
        BadInputError: an empty list, an empty, repeated or overlong label, or a bad template.
    """
    checked_labels = check_labels(labels)
    checked_templates = bundle.templates if templates is None else check_templates(templates)
    text_features = (encode or encode_labels)(bundle, checked_labels, checked_templates)
    task = SpecializedTask(labels=checked_labels, templates=checked_templates, bundle_digest=bundle.digest)
    return SpecializedEncoder(
        task=task,
        text_features=text_features,
        delta=bundle.model.generate(text_features[None])[0],
        logit_scale=bundle.model.logit_scale.detach(),
        logit_bias=bundle.model.logit_bias.detach(),
    )


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels in canonical form (NFC, trimmed; case and order kept).

    Raises:
        BadInputError: none or too many, or one that is empty, overlong, unprintable or there twice; the message names it.
    """
    if isinstance(labels, str) or not labels:
        raise BadInputError("the list of labels is empty; name at least one class")
    if len(labels) > MAX_SET_SIZE:
        raise BadInputError(f"{len(labels):,} labels; at most {MAX_SET_SIZE:,} are allowed in one task")
    canonical = tuple(unicodedata.normalize("NFC", label).strip() for label in labels)
    first_place: dict[str, int] = {}
    for place, label in enumerate(canonical):
        if not label:
            raise BadInputError(f"label {place + 1} is empty")
        if _CONTROL_CHARACTER.search(label):
            raise BadInputError(f"label {place + 1}, {label[:40]!r}, holds a control character, such as a line break or a tab")
        if len(label) > MAX_LABEL_CHARACTERS:
            raise BadInputError(f"label {place + 1} has {len(label):,} characters; at most {MAX_LABEL_CHARACTERS} are allowed")
        if label in first_place:
            raise BadInputError(f"label {label!r} is there twice, at {first_place[label] + 1} and {place + 1}")
        first_place[label] = place
    return canonical


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Raises BadInputError unless each template holds `{}` exactly once."""
    if isinstance(templates, str) or not 1 <= len(templates) <= MAX_TEMPLATES:
        raise BadInputError(f"give a list of 1 to {MAX_TEMPLATES} templates")
    for template in templates:
        if template.count("{}") != 1 or len(template) > MAX_LABEL_CHARACTERS:
            raise BadInputError(
                f"template {template!r} must hold {{}} once, for the label, in at most {MAX_LABEL_CHARACTERS} characters"
            )
    return tuple(templates)


@torch.no_grad()
def encode_labels(bundle: Bundle, labels: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(C, D): the renormalized mean over the templates of each label's text features.

    Raises:
        BadInputError: a label does not fit the text encoder's context.
    """
    texts = [template.replace("{}", label) for label in labels for template in templates]
    for text in texts:
        # a character gives at most four tokens (its UTF-8 bytes): count only where it could be too many
        if len(text) * 4 > CONTEXT_LENGTH and (found := bundle.tokenizer.num_tokens(text)) > CONTEXT_LENGTH:
            raise BadInputError(f"{text!r} has {found} tokens; the text encoder reads {CONTEXT_LENGTH}")
    features = encode_texts(bundle, texts).view(len(labels), len(templates), -1)
    return F.normalize(features.mean(dim=1), dim=-1)


@torch.no_grad()
def encode_texts(bundle: Bundle, texts: Sequence[str]) -> Tensor:
    """(T, D) unit vectors, in batches of bounded memory.

    What a text gives does not depend on the others, up to the last bit on the processors we know and to 1e-6 on any.
    """
    device = bundle.model.log_scale.device
    parts: list[Tensor] = []
    places: list[Tensor] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        tokens = bundle.tokenizer.padded(texts[start : start + TEXTS_AT_ONCE])
        lengths = (tokens == END_OF_TEXT).int().argmax(dim=1) + 1
        padded = (lengths + LENGTH_STEP - 1).div(LENGTH_STEP, rounding_mode="floor") * LENGTH_STEP
        for length in padded.unique().tolist():
            for rows in _in_batches((padded == length).nonzero()[:, 0]):
                batch = tokens[rows, :length].to(device)
                missing = max(0, MIN_ROWS - len(rows))
                parts.append(bundle.model.encode_text(torch.cat([batch, batch[:1].expand(missing, -1)]))[: len(rows)])
                places.append(start + rows)
    return torch.cat(parts)[torch.cat(places).argsort().to(device)]


def _in_batches(rows: Tensor) -> list[Tensor]:
    """Of about the same size: a rest of one to three would have to be padded."""
    return list(torch.tensor_split(rows, -(-len(rows) // TEXT_BATCH)))


def save_specialized(encoder: SpecializedEncoder, folder: Path, bundle: Bundle) -> None:
    """Write `encoder.safetensors`, with the delta by parameter name, and last `task.json` with its hash.

    Raises:
        BadInputError: the folder has something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInputError(f"{folder} exists and is not an empty folder; an encoder gets a folder of its own")
    for name, data in specialized_files(encoder, bundle).items():
        storage.write_atomic(str(folder / name), data)


def specialized_files(encoder: SpecializedEncoder, bundle: Bundle) -> dict[str, bytes]:
    """Name and content of each file, in the order in which they are to be written."""
    named = bundle.model.image_encoder.layout.split(encoder.delta.cpu())
    tensors = {f"delta.{name}": value for name, value in named.items()}
    tensors |= {"text_features": encoder.text_features, "logit_scale": encoder.logit_scale, "logit_bias": encoder.logit_bias}
    # as arrays: for many small tensors safetensors' own way from torch takes ten times as long
    data = save({name: value.cpu().contiguous().numpy() for name, value in tensors.items()})
    stored = StoredTask(**encoder.task.model_dump(), encoder_sha256=hashlib.sha256(data).hexdigest())
    return {ENCODER_NAME: data, TASK_NAME: stored.model_dump_json(indent=1).encode()}


def load_specialized(folder: Path, bundle: Bundle) -> SpecializedEncoder:
    """Read what `save_specialized` wrote.

    Raises:
        BadInputError: nothing finished there, or it was made by another model.
        CorruptArtefactError: `task.json` is none, or `encoder.safetensors` is not the file it belongs to.
    """
    uri = str(folder / TASK_NAME)
    if not storage.exists(uri):
        raise BadInputError(f"{folder} holds no {TASK_NAME}: no specialized encoder, or one that was not finished")
    artefacts.check_schema_version(uri, newest=1)
    stored = artefacts.read_model(uri, StoredTask)
    if stored.bundle_digest != bundle.digest:
        raise BadInputError(
            f"{folder} was made by model {stored.bundle_digest[:12]}, not by {bundle.digest[:12]}; specialize again"
        )
    path = folder / ENCODER_NAME
    data = path.read_bytes() if path.is_file() else b""
    if (found := hashlib.sha256(data).hexdigest()) != stored.encoder_sha256:
        raise CorruptArtefactError(
            f"{path} is missing or damaged: its sha256 is {found[:12]}, {TASK_NAME} says {stored.encoder_sha256[:12]}; "
            "specialize again"
        )
    tensors = load(data)
    delta = {name.removeprefix("delta."): value for name, value in tensors.items() if name.startswith("delta.")}
    return SpecializedEncoder(
        task=SpecializedTask(**stored.model_dump(exclude={"encoder_sha256"})),
        text_features=tensors["text_features"],
        delta=bundle.model.image_encoder.layout.join(delta),
        logit_scale=tensors["logit_scale"],
        logit_bias=tensors["logit_bias"],
    )
