"""Parameters of a plain image encoder tuned directly on training pictures: the most that generating them can reach.

What is tuned for a topic is what a hypernetwork would generate from the topic's names: a delta of the product's own layers,
under frozen statistics and fixed text features; or, as the upper end, every weight.  The factor `read` of a low-rank delta,
which a hypernetwork shares between all sets of names, is tuned too: a ceiling should not fall for a bad draw of it.
Shapes: B pictures of a batch, M pictures, S side, C names of a topic, N names of a set, D embedding, P values of a delta.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.augment import augmented
from training.bundle import Bundle
from training.config import AugmentConfig
from training.data import normalized
from training.evaluation.evaluation_set import EvaluationSet
from training.initial import start_from
from training.model.hyperclip import HyperClip
from training.model.image_encoder import ImageEncoder, ImageEncoderConfig, Kind
from training.model.parameter_delta import GroupDelta
from training.specialize import encode_labels

SET_SIZE = 64
"""Most names of a set that pictures are told apart by."""
GROUPS = 4
"""Topics in a batch of what is tuned for all of them."""
LEARNING_RATES: dict[str, float] = {"norm": 1e-2, "projection": 5e-3, "convolution": 5e-3, "pointwise": 5e-3}
ALL_WEIGHTS_RATE = 1e-3
SCALE_RATE = 1e-2
CONVOLUTIONS: tuple[Kind, ...] = ("convolution", "pointwise")
AS_GENERATED = "as_generated"
AUGMENT = AugmentConfig(grayscale_share=0.3)
"""That of the sweep: with less variation the tuned would be worse on new styles, which is no ceiling."""
PICTURES_AT_ONCE = 256


@dataclass(frozen=True)
class Topic:
    """The training pictures of the names of one topic."""

    name: str
    labels: tuple[str, ...]
    pictures: tuple[tuple[bytes, ...], ...]
    """Of each name, as they are stored."""
    text_features: Tensor
    """(C, D)."""


def topics_of(bundle: Bundle, training: EvaluationSet, wanted: Sequence[str], *, min_names: int) -> list[Topic]:
    """Topics with enough names among the training pictures, in the order of `wanted`."""
    reading = training.objects
    number_of = {name: number for number, name in enumerate(wanted)}
    labels: list[dict[int, list[bytes]]] = [{} for _ in wanted]
    for number, (_, picture) in zip(reading.class_of_picture.tolist(), training.stored(), strict=True):
        if (topic := number_of.get(reading.topic_of_class[number] or "")) is not None:
            labels[topic].setdefault(number, []).append(picture)
    found = []
    for name, classes in zip(wanted, labels, strict=True):
        if len(classes) >= min_names:
            names = tuple(reading.names[number] for number in classes)
            features = encode_labels(bundle, names, bundle.templates)
            found.append(Topic(name, names, tuple(map(tuple, classes.values())), features))
    return found


class Tuned(nn.Module):
    """A copy of the twin's image encoder with what is tuned on it."""

    def __init__(self, twin: Bundle, image: ImageEncoderConfig, kinds: tuple[Kind, ...] | None, *, seed: int) -> None:
        """Args:
        image: the twin's encoder with the ranks that count.
        kinds: of deltas; None for every weight.
        """
        super().__init__()
        torch.manual_seed(seed)  # of the factors that the twin lacks
        model = HyperClip(replace(twin.model.config, image=replace(image, generates=kinds or ("norm",)), hypernetwork=None))
        start_from(model, twin, uri=f"twin {twin.digest[:12]}")
        self.encoder = model.image_encoder.eval().requires_grad_(kinds is None)  # statistics stand still
        self.log_scale = nn.Parameter(twin.model.log_scale.detach().clone())
        self.delta = None if kinds is None else nn.Parameter(torch.zeros(1, self.encoder.layout.num_values))
        if kinds is not None:
            for name, value in self.encoder.named_parameters():
                value.requires_grad_(name.endswith(".read"))
        rate = ALL_WEIGHTS_RATE if kinds is None else min(LEARNING_RATES[kind] for kind in kinds)
        own = [value for name, value in self.named_parameters() if name != "log_scale" and value.requires_grad]
        self._rates = [SCALE_RATE, rate]
        groups = [{"params": [self.log_scale], "lr": SCALE_RATE}, {"params": own, "lr": rate}]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98))

    @property
    def num_values(self) -> int:
        """Tuned for a task, without the temperature."""
        if self.delta is not None:
            return self.delta.numel()
        return sum(value.numel() for value in self.encoder.parameters())

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        features: Tensor = self.encoder(images, None if self.delta is None else GroupDelta(self.delta))
        return features

    def step(self, images: Tensor, choices: Sequence["Choice"], *, share_done: float) -> float:
        """One optimizer step on the pictures of some sets; returns the loss.

        Args:
            images: those of all choices, in order.
            share_done: of the steps, for the cosine.
        """
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * share_done))
        features = self(images).split([len(choice.targets) for choice in choices])
        losses = [
            F.cross_entropy(self.log_scale.exp() * own @ choice.text_features.T, choice.targets)
            for own, choice in zip(features, choices, strict=True)
        ]
        loss = torch.stack(losses).mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.item()

    @torch.no_grad()
    def encode(self, pixels: np.ndarray, bundle: Bundle) -> Tensor:
        """(M, S, S, 3) uint8, cut as the preprocessing says -> (M, D)."""
        parts = np.array_split(pixels, max(1, math.ceil(len(pixels) / PICTURES_AT_ONCE)))
        return torch.cat([self(normalized(torch.from_numpy(part), bundle.preprocess)) for part in parts])


@dataclass(frozen=True)
class Choice:
    """Pictures of one topic, to be told apart by a set of its names."""

    text_features: Tensor
    """(N, D)."""
    targets: Tensor
    """Place in the set, of each picture."""
    pictures: tuple[bytes, ...]


def draw_choice(topic: Topic, *, num_pictures: int, rng: np.random.Generator) -> Choice:
    """A set of names of the topic, and pictures of names of the set."""
    chosen = rng.permutation(len(topic.labels))[:SET_SIZE]
    targets = rng.integers(len(chosen), size=num_pictures)
    pictures = [topic.pictures[chosen[target]] for target in targets]
    return Choice(
        text_features=topic.text_features[torch.from_numpy(chosen)],
        targets=torch.from_numpy(targets),
        pictures=tuple(of_name[int(rng.integers(len(of_name)))] for of_name in pictures),
    )


def varied(pictures: Sequence[bytes], bundle: Bundle, augment: AugmentConfig, *, rng: np.random.Generator) -> Tensor:
    """(B, 3, S, S): decoded, varied and normalized as in training."""
    side = bundle.preprocess.image_size
    pixels = np.empty((len(pictures), side, side, 3), dtype=np.uint8)
    for picture, out in zip(pictures, pixels, strict=True):
        augmented(picture, augment, out=out, rng=rng)
    return normalized(torch.from_numpy(pixels), bundle.preprocess)


Ways = Mapping[str, tuple[Kind, ...] | None]
"""What is tuned, by name: kinds of deltas, None for every weight."""


def ways_to_tune(image: ImageEncoderConfig, generated: tuple[Kind, ...]) -> dict[str, tuple[Kind, ...] | None]:
    """Norms, projection, low-rank convolutions, all weights, and what a HyperCLIP generates.

    Args:
        image: with the ranks that count.
        generated: by the HyperCLIP.
    """
    low_rank = tuple(kind for kind in CONVOLUTIONS if _has(image, kind))
    ways: dict[str, tuple[Kind, ...] | None] = {"norms": ("norm",), "projection": ("projection",)}
    if low_rank:
        ways["convolutions"] = low_rank
    return {**ways, "all_weights": None, AS_GENERATED: generated}


def _has(image: ImageEncoderConfig, kind: Kind) -> bool:
    try:
        ImageEncoder(replace(image, generates=(kind,)))
    except ValueError:  # no such layer in this trunk
        return False
    return True


def tune(
    twin: Bundle,
    image: ImageEncoderConfig,
    ways: Ways,
    topics: Sequence[Topic],
    *,
    num_steps: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, Mapping[str, float]], None],
) -> dict[str, Tuned]:
    """Tune in every way on pictures of the topics, all on the same batches.

    Args:
        image: the twin's encoder with the ranks that count.
        topics: one; or several, some of which share each batch, for what is tuned for all of them.
        progress: called with the steps done and the losses.
    """
    tuned = {name: Tuned(twin, image, kinds, seed=seed) for name, kinds in ways.items()}
    rng = np.random.default_rng((seed, len(topics)))
    groups = min(GROUPS, len(topics))
    for step in range(num_steps):
        chosen = rng.permutation(len(topics))[:groups]
        choices = [draw_choice(topics[number], num_pictures=batch_size // groups, rng=rng) for number in chosen]
        images = varied([picture for choice in choices for picture in choice.pictures], twin, AUGMENT, rng=rng)
        losses = {name: one.step(images, choices, share_done=step / num_steps) for name, one in tuned.items()}
        progress(step + 1, losses)
    return tuned
