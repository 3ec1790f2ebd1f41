"""Label-set tasks: which names an encoder is asked to tell apart, drawn by seed.

A task is a list of classes with distinct names; its pictures are those of these classes.  Distractors are names among them
whose pictures are left out.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from infra.config import StrictModel
from infra.errors import BadInputError
from training.evaluation.evaluation_set import NO_CLASS, OBJECT, Reading

TaskKind = Literal["random", "same_topic", "all", "held_out_among_known"]
"""Any names of the set; names of one topic; every name of the set with every picture, which is one task; one name of the set,
with its pictures, among names of its topic that come from other files."""
TASK_KINDS: tuple[TaskKind, ...] = get_args(TaskKind)

_KIND_TITLES: dict[TaskKind, str] = {
    "random": "random",
    "same_topic": "same topic",
    "all": "all names",
    "held_out_among_known": "one held out among known ones",
}


class TaskFamily(StrictModel):
    """Tasks of one kind and size."""

    kind: TaskKind = "random"
    num_names: PositiveInt
    num_distractors: NonNegativeInt = 0
    """Of these names, how many have no picture in the task."""
    reading: str = OBJECT
    """How the pictures are named: by what they show, or by a further reading of the same pictures."""

    @property
    def title(self) -> str:
        """For people."""
        kind = _KIND_TITLES[self.kind]
        parts = [f"{self.num_names:,} names, {kind}"]
        if self.num_distractors:
            parts.append(f"{self.num_distractors} distractors")
        if self.reading != OBJECT:
            parts.append(f"by {self.reading}")
        return ", ".join(parts)

    @property
    def slug(self) -> str:
        """For metrics: `10_way`, `10_way_same_topic_5_distractors`."""
        parts = [f"{self.num_names}_way"]
        if self.kind != "random":
            parts.append(self.kind)
        if self.num_distractors:
            parts.append(f"{self.num_distractors}_distractors")
        if self.reading != OBJECT:
            parts.append("by_" + re.sub(r"\W+", "_", self.reading))
        return "_".join(parts)


@dataclass(frozen=True)
class LabelSetTask:
    classes: tuple[int, ...]
    """Numbers of the classes; the label of a picture is its class's place here."""
    pictures: tuple[int, ...]
    targets: tuple[int, ...]
    """The right label of each picture, as a place in `classes`."""
    topic: str | None = None


def draw_tasks(reading: Reading, family: TaskFamily, *, num_tasks: int, max_pictures: int, seed: int) -> list[LabelSetTask]:
    """Draw tasks of a family.  Classes are dealt like cards, so each turns up about equally often; topics take turns.

    Args:
        max_pictures: of one name in a task; more are drawn from.  Not for kind `all`, which takes every picture.

    Raises:
        BadInputError: the pictures show fewer classes than a task needs, or no topic does.
    """
    pictures_of: list[list[int]] = [[] for _ in reading.names]
    for picture, number in enumerate(reading.class_of_picture.tolist()):
        if number != NO_CLASS:
            pictures_of[number].append(picture)
    if family.kind == "all":
        return [_task(range(reading.num_own), reading.num_own, pictures_of, topic=None)]
    hands = {"random": _random_hands, "same_topic": _topic_hands, "held_out_among_known": _hands_among_known}[family.kind]
    drawn: list[LabelSetTask] = []
    rng = np.random.default_rng((seed, family.num_names, 2))
    for topic, classes in hands(reading, pictures_of, family.num_names, seed):
        chosen = {number: _some(pictures_of[number], max_pictures, rng) for number in classes}
        drawn.append(_task(classes, family.num_names - family.num_distractors, chosen, topic=topic))
        if len(drawn) == num_tasks:
            break
    return drawn


def reread(task: LabelSetTask, reading: Reading) -> LabelSetTask:
    """The same pictures under all names of another reading; those without a name in it are left out."""
    pairs = [(picture, int(reading.class_of_picture[picture])) for picture in task.pictures]
    pairs = [(picture, number) for picture, number in pairs if number != NO_CLASS]
    return LabelSetTask(
        classes=tuple(range(len(reading.names))),
        pictures=tuple(picture for picture, _ in pairs),
        targets=tuple(number for _, number in pairs),
        topic=task.topic,
    )


def _random_hands(
    reading: Reading, pictures_of: list[list[int]], num_names: int, seed: int
) -> Iterator[tuple[str | None, list[int]]]:
    deck = _deck(reading, pictures_of)
    if len(deck) < num_names:
        raise BadInputError(f"the evaluation pictures show {len(deck)} concepts; {num_names}-way tasks need {num_names}")
    rng = np.random.default_rng((seed, num_names))
    while True:
        for hand in _deal(deck, num_names, rng):
            yield None, hand


def _topic_hands(
    reading: Reading, pictures_of: list[list[int]], num_names: int, seed: int
) -> Iterator[tuple[str | None, list[int]]]:
    decks: dict[str, list[int]] = {}
    for number in _deck(reading, pictures_of):
        if (topic := reading.topic_of_class[number]) is not None:
            decks.setdefault(topic, []).append(number)
    large = sorted(topic for topic, deck in decks.items() if len(deck) >= num_names)
    if not large:
        most = max(decks, key=lambda topic: (len(decks[topic]), topic), default=None)
        found = (
            f"the largest, {most!r}, has {len(decks[most])}" if most is not None else "these pictures have no topics (`group`)"
        )
        raise BadInputError(f"no topic has the {num_names} concepts that a task needs: {found}")
    rng = np.random.default_rng((seed, num_names, 1))
    turns = [large[place] for place in rng.permutation(len(large))]
    waiting: dict[str, list[list[int]]] = {topic: [] for topic in large}
    while True:
        for topic in turns:
            if not waiting[topic]:
                waiting[topic] = list(_deal(decks[topic], num_names, rng))[::-1]
            yield topic, waiting[topic].pop()


def _hands_among_known(
    reading: Reading, pictures_of: list[list[int]], num_names: int, seed: int
) -> Iterator[tuple[str | None, list[int]]]:
    """One class with pictures, each in turn, and names of its topic without, drawn anew every time."""
    known: dict[str, list[int]] = {}
    for number in range(reading.num_own, len(reading.names)):
        if (topic := reading.topic_of_class[number]) is not None:
            known.setdefault(topic, []).append(number)
    beside = {number: known.get(reading.topic_of_class[number] or "", []) for number in _deck(reading, pictures_of)}
    held_out = [number for number, names in beside.items() if len(names) >= num_names - 1]
    if not held_out:
        most = max(map(len, beside.values()), default=0)
        raise BadInputError(
            f"no concept has the {num_names - 1} known names of its topic that stand beside it in a task: "
            + (f"there are at most {most}" if reading.num_known else "none were given (names_from)")
        )
    rng = np.random.default_rng((seed, num_names, 3))
    while True:
        for place in rng.permutation(len(held_out)):
            number = held_out[place]
            hand = [number, *rng.choice(beside[number], size=num_names - 1, replace=False).tolist()]
            yield reading.topic_of_class[number], rng.permutation(hand).tolist()  # of equal scores the first would win


def _deck(reading: Reading, pictures_of: list[list[int]]) -> list[int]:
    """Classes with pictures; of classes of one name the first."""
    first = {name: number for number, name in reversed(list(enumerate(reading.names)))}
    return [number for number, name in enumerate(reading.names) if pictures_of[number] and first[name] == number]


def _deal(deck: Sequence[int], size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """The deck once, shuffled, in hands of this size; what is left over is too few for a hand."""
    shuffled = [deck[place] for place in rng.permutation(len(deck))]
    for start in range(0, len(deck) - size + 1, size):
        yield shuffled[start : start + size]


def _some(pictures: list[int], count: int, rng: np.random.Generator) -> list[int]:
    if len(pictures) <= count:
        return pictures
    return [pictures[place] for place in sorted(rng.choice(len(pictures), size=count, replace=False))]


def _task(
    classes: Sequence[int], num_shown: int, pictures_of: list[list[int]] | dict[int, list[int]], *, topic: str | None
) -> LabelSetTask:
    """The first `num_shown` classes show their pictures."""
    pairs = [(picture, place) for place, number in enumerate(classes[:num_shown]) for picture in pictures_of[number]]
    return LabelSetTask(
        classes=tuple(classes),
        pictures=tuple(picture for picture, _ in pairs),
        targets=tuple(place for _, place in pairs),
        topic=topic,
    )
