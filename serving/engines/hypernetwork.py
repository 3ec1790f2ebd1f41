"""Names to encoders and texts to features: the text encoder and the hypernetwork, with the bounds of a service."""

from collections.abc import Sequence

import numpy as np

from infra.errors import BadInputError
from serving.engines.text_features import TextFeatureCache
from serving.limits import ServingLimits
from serving.task_record import TaskRecord
from training.bundle import Bundle
from training.export import Packager
from training.specialize import SpecializedEncoder, encode_texts, specialize
from training.tokenizer import MAX_CHARACTERS


class HypernetworkEngine:
    """One model's text side; for one thread at a time."""

    def __init__(self, bundle: Bundle, limits: ServingLimits, *, text_features: TextFeatureCache) -> None:
        """Args: text_features, shared by the models of a replica, so that its bound is one for all."""
        self.bundle = bundle
        self._limits = limits
        self._text_features = text_features
        self._packager = Packager(bundle)

    def specialize(self, record: TaskRecord) -> SpecializedEncoder:
        """Make the encoder of a task.

        Raises:
            BadInputError: a text does not fit the text encoder, or all together have too many tokens.
        """
        templates = self.bundle.templates if record.templates is None else record.templates
        self._check_total_tokens(record.labels, templates)
        return specialize(self.bundle, record.labels, templates, encode=self._text_features.encode)

    def remember(self, encoder: SpecializedEncoder) -> None:
        """Take the label features of an encoder that this model made earlier."""
        self._text_features.put(self.bundle, encoder.task.labels, encoder.task.templates, encoder.text_features)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(T, D) unit vectors, one per text.

        Raises:
            BadInputError: no text, an empty or a very long one, or one that does not fit the text encoder.
        """
        if not texts:
            raise BadInputError("the list of texts is empty")
        context = self.bundle.model.config.text.context_length
        for place, text in enumerate(texts, 1):
            if not text.strip():
                raise BadInputError(f"text {place} is empty")
            if len(text) > MAX_CHARACTERS:
                raise BadInputError(f"text {place} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are allowed")
            if (found := self.bundle.tokenizer.num_tokens(text)) > context:
                raise BadInputError(f"text {place} has {found} tokens; the text encoder reads {context}")
        return encode_texts(self.bundle, texts).cpu().numpy()

    def package(self, encoder: SpecializedEncoder) -> bytes:
        """The edge package as a zip file.

        Raises:
            ParityError: the ONNX file does not compute what the model computes.
        """
        return self._packager.zipped(encoder)

    def _check_total_tokens(self, labels: Sequence[str], templates: Sequence[str]) -> None:
        most = self._limits.max_total_tokens
        num_texts = len(labels) * len(templates)
        characters = sum(map(len, labels)) * len(templates) + sum(len(template) - 2 for template in templates) * len(labels)
        if characters * 4 + 2 * num_texts <= most:  # a character gives at most four tokens (its UTF-8 bytes)
            return
        total = 0
        for label in labels:
            for template in templates:
                total += self.bundle.tokenizer.num_tokens(template.replace("{}", label))
            if total > most:
                raise BadInputError(
                    f"labels times templates give more than the {most:,} tokens allowed; use fewer labels or templates"
                )
