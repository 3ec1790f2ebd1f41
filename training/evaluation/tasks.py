"""Label-set tasks: which names an encoder is asked to tell apart, drawn by seed.

A task is a list of distinct concepts; the pictures of a task are all pictures of its concepts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infra.errors import BadInputError


@dataclass(frozen=True)
class LabelSetTask:
    concepts: tuple[int, ...]
    """Numbers of the concepts; the label of a picture is its concept's place here."""
    pictures: tuple[int, ...]
    """Numbers of the pictures of these concepts."""
    targets: tuple[int, ...]
    """The right label of each picture, as a place in `concepts`."""


def draw_tasks(concept_of_picture: Sequence[int], *, num_ways: int, num_tasks: int, seed: int) -> list[LabelSetTask]:
    """Draw tasks of `num_ways` concepts.  Concepts are dealt like cards, so each turns up about equally often.

    Raises:
        BadInputError: the pictures show fewer concepts than a task needs.
    """
    num_concepts = max(concept_of_picture, default=-1) + 1
    if num_concepts < num_ways:
        raise BadInputError(f"the evaluation pictures show {num_concepts} concepts; {num_ways}-way tasks need {num_ways}")
    rng = np.random.default_rng((seed, num_ways))
    pictures_of: list[list[int]] = [[] for _ in range(num_concepts)]
    for picture, concept in enumerate(concept_of_picture):
        pictures_of[concept].append(picture)
    tasks: list[LabelSetTask] = []
    while len(tasks) < num_tasks:
        deck = rng.permutation(num_concepts)
        for start in range(0, num_concepts - num_ways + 1, num_ways):
            concepts = deck[start : start + num_ways].tolist()
            pairs = [(picture, place) for place, concept in enumerate(concepts) for picture in pictures_of[concept]]
            pictures, targets = zip(*pairs, strict=True)
            tasks.append(LabelSetTask(tuple(concepts), pictures, targets))
    return tasks[:num_tasks]
