"""Pictures with names to evaluate on, whatever they are stored in.

Names and captions are small and are there at once; pictures come as a stream in their order and are decoded once.
Shapes: M pictures, S side of a picture as the model sees it.
"""

import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from pydantic import Field

from infra import images
from infra.config import StrictModel
from infra.errors import BadInputError
from training.evaluation.core_threads import core_threads
from training.preprocess import PreprocessConfig, centre_square
from training.topics import topic_of

NO_CLASS = -1
OBJECT = "object"
"""The first reading of the pictures: what they show."""
MAX_NAMED = 5
"""Broken pictures that an error names."""
DECODED_AT_ONCE, AHEAD = 64, 4
"""Pictures that a thread decodes in one go, and how many such parts are read beyond one for each thread: this bounds
the encoded pictures in memory; decoded ones take three bytes a pixel at the model's size."""
MAX_IN_MEMORY = 2 << 30
"""Bytes of decoded pictures beyond which they lie in a temporary file."""

Value = TypeVar("Value")


class ReadingConfig(StrictModel):
    """A further way to name the same pictures: their style, their colour."""

    column: str
    """Column of the parquet file; of shards `source`, `licence` or `group`."""
    names: dict[str, str] = Field(default_factory=dict)
    """Value of the column -> how a person would say it.  A value that is not listed stands for itself; one whose name is empty
    leaves its pictures out."""


@dataclass(frozen=True)
class Reading:
    """One way to name what the pictures show."""

    name: str
    names: tuple[str, ...]
    """Of each class; distinct, but for sets of others that name two classes alike."""
    class_of_picture: np.ndarray
    """(M,) int64; `NO_CLASS` where the picture has no name in this reading."""
    topic_of_class: tuple[str | None, ...]
    num_known: int = 0
    """The last so many classes come from elsewhere and have no pictures: they only stand beside the others in tasks of kind
    `held_out_among_known`."""

    @property
    def num_own(self) -> int:
        """Classes of the set itself."""
        return len(self.names) - self.num_known


@dataclass(frozen=True)
class EvaluationSet:
    name: str
    """For people."""
    identity: str
    """SHA-256 of what it holds."""
    objects: Reading
    further: tuple[Reading, ...]
    captions: tuple[str, ...] | None
    """Of each picture, for retrieval; none where there are class names only."""
    templates: tuple[str, ...] | None
    """What comes with the set."""
    stored: Callable[[], Iterator[tuple[str, bytes]]]
    """Streams every picture in order: where it lies, for people, and its bytes."""

    def __len__(self) -> int:
        return len(self.objects.class_of_picture)


def object_reading(
    captions: Sequence[str],
    concepts: Sequence[str | None],
    groups: Sequence[str | None],
    *,
    places: Sequence[str] | None = None,
) -> Reading:
    """Name each concept by the most common caption of its pictures; pictures without a concept go by their caption.

    Concepts of one name are one class: nobody can tell them apart by it.  The topic is the part of the group before "/".

    Args:
        places: where each picture lies, for errors.

    Raises:
        BadInputError: a picture has neither a caption nor a concept.
    """
    clean = [" ".join(caption.split()) for caption in captions]
    for number, (caption, concept) in enumerate(zip(clean, concepts, strict=True)):
        if not caption:
            what = f"concept {concept!r} but no caption" if concept else "no caption"
            raise BadInputError(
                f"{places[number] if places else f'picture {number}'} has {what}: nothing says what it is called"
            )
    keys = [f"concept {concept}" if concept else f"caption {caption}" for concept, caption in zip(concepts, clean, strict=True)]
    called: dict[str, Counter[str]] = {}
    for key, caption in zip(keys, clean, strict=True):
        called.setdefault(key, Counter())[caption] += 1
    name_of = {key: found.most_common(1)[0][0] for key, found in called.items()}  # of equals the first
    return _reading(OBJECT, [name_of[key] for key in keys], [topic_of(group) for group in groups])


def further_reading(name: str, values: Sequence[str | None], renamed: Mapping[str, str]) -> Reading:
    """Name the pictures by the values of a column."""
    names = [renamed.get(value, value) if value else None for value in values]
    return _reading(name, [name or None for name in names], [None] * len(names))


def _reading(name: str, name_of_picture: Sequence[str | None], topic_of_picture: Sequence[str | None]) -> Reading:
    names = tuple(dict.fromkeys(found for found in name_of_picture if found is not None))
    number_of = {found: number for number, found in enumerate(names)}
    classes = [NO_CLASS if found is None else number_of[found] for found in name_of_picture]
    topics: list[Counter[str]] = [Counter() for _ in names]
    for number, topic in zip(classes, topic_of_picture, strict=True):
        if number != NO_CLASS and topic is not None:
            topics[number][topic] += 1
    most = tuple(found.most_common(1)[0][0] if found else None for found in topics)
    return Reading(name=name, names=names, class_of_picture=np.array(classes, dtype=np.int64), topic_of_class=most)


def decoded(pictures: EvaluationSet, config: PreprocessConfig) -> np.ndarray:
    """(M, S, S, 3) uint8: every picture, cut and resized as when it is served.

    Raises:
        BadInputError: a picture is broken; the first ones are named with their place.
    """
    found = space_for(pictures, config)
    for _ in decode_into(found, pictures, config, then=lambda rows: rows):
        pass
    return found


def decode_into(
    found: np.ndarray, pictures: EvaluationSet, config: PreprocessConfig, *, then: Callable[[slice], Value]
) -> Iterator[Value]:
    """Decode on all cores; yields in order what `then` makes of the rows that are ready, in the thread that decoded them.

    Raises:
        BadInputError: as `decoded`, when the other pictures are done.
    """
    broken: list[str] = []
    number_broken = done = 0

    def decode(part: list[tuple[int, tuple[str, bytes]]]) -> tuple[list[str], Value]:
        problems = []
        for number, (place, data) in part:
            try:
                pixels = images.decode_rgb(data, background=config.background)
                found[number] = centre_square(pixels, config.image_size)
            except images.ImageError as error:
                problems.append(f"{place}: {error}")
        return problems, then(slice(part[0][0], part[-1][0] + 1))

    stream = enumerate(pictures.stored())
    with core_threads() as threads:  # decoding and resizing leave the interpreter
        parts = iter(lambda: list(islice(stream, DECODED_AT_ONCE)), [])
        ahead = torch.get_num_threads() + AHEAD
        waiting = deque((len(part), threads.submit(decode, part)) for part in islice(parts, ahead))
        while waiting:
            size, future = waiting.popleft()
            problems, value = future.result()
            waiting.extend((len(part), threads.submit(decode, part)) for part in islice(parts, 1))
            number_broken += len(problems)
            broken += problems[: MAX_NAMED - len(broken)]
            done += size
            yield value
    if broken:
        more = f"\n  and {number_broken - len(broken):,} more" if number_broken > len(broken) else ""
        raise BadInputError(
            f"{number_broken:,} of {len(pictures):,} pictures of {pictures.name} cannot be read; "
            "repair them or take them out:\n  " + "\n  ".join(broken) + more
        )
    if done != len(pictures):
        raise BadInputError(f"{pictures.name} gave {done:,} of {len(pictures):,} pictures: it was changed meanwhile; run again")


def space_for(pictures: EvaluationSet, config: PreprocessConfig) -> np.ndarray:
    """(M, S, S, 3) uint8 to decode into: zeros in memory, or in a file without a name that is gone with the array."""
    shape = (len(pictures), config.image_size, config.image_size, 3)
    if int(np.prod(shape)) <= MAX_IN_MEMORY:
        return np.zeros(shape, dtype=np.uint8)
    with tempfile.TemporaryFile(prefix="hyperclip-pictures-") as file:
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
