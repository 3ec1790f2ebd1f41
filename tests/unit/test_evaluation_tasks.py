"""Which label-set tasks are drawn."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import BadInputError
from training.evaluation.evaluation_set import NO_CLASS, Reading, further_reading, object_reading
from training.evaluation.tasks import LabelSetTask, TaskFamily, draw_tasks, reread


def reading_of(classes: Sequence[int], *, topics: Sequence[str | None] | None = None) -> Reading:
    number = max(classes, default=-1) + 1
    return Reading(
        name="object",
        names=tuple(f"thing {place}" for place in range(number)),
        class_of_picture=np.array(classes, dtype=np.int64),
        topic_of_class=tuple(topics) if topics else (None,) * number,
    )


def drawn(
    classes: Sequence[int],
    num_names: int,
    *,
    num_tasks: int = 4,
    seed: int = 0,
    max_pictures: int = 100,
    topics: Sequence[str | None] | None = None,
    **family: object,
) -> list[LabelSetTask]:
    chosen = TaskFamily.model_validate({"num_names": num_names, **family})
    reading = reading_of(classes, topics=topics)
    return draw_tasks(reading, chosen, num_tasks=num_tasks, max_pictures=max_pictures, seed=seed)


@settings(deadline=None, max_examples=50)
@given(
    classes=st.lists(st.integers(0, 14), min_size=1, max_size=60).map(lambda found: [*range(15), *found]),
    num_names=st.integers(2, 15),
    num_tasks=st.integers(1, 20),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_a_task_has_distinct_classes_and_all_pictures_of_those_that_are_shown(
    classes: list[int], num_names: int, num_tasks: int, seed: int, data: st.DataObject
) -> None:
    num_distractors = data.draw(st.integers(0, num_names - 1))
    tasks = drawn(classes, num_names, num_tasks=num_tasks, seed=seed, num_distractors=num_distractors)
    assert len(tasks) == num_tasks
    for task in tasks:
        assert len(set(task.classes)) == num_names
        shown = task.classes[: num_names - num_distractors]
        assert sorted(task.pictures) == [number for number, found in enumerate(classes) if found in shown]
        assert [task.classes[target] for target in task.targets] == [classes[picture] for picture in task.pictures]
    assert tasks == drawn(classes, num_names, num_tasks=num_tasks, seed=seed, num_distractors=num_distractors)


def test_classes_are_dealt_like_cards() -> None:
    tasks = drawn(range(30), 10, num_tasks=12)  # four whole decks
    assert set(Counter(number for task in tasks for number in task.classes).values()) == {4}


def test_another_seed_and_another_size_draw_other_tasks() -> None:
    first = drawn(range(30), 10, num_tasks=3)
    assert first != drawn(range(30), 10, num_tasks=3, seed=1)
    assert first == drawn(range(30), 10, num_tasks=9)[:3]


@pytest.mark.parametrize("classes", [[], [0, 1, 2, 2, 2]])
def test_too_few_classes_are_refused(classes: list[int]) -> None:
    with pytest.raises(BadInputError, match="5-way tasks need 5"):
        drawn(classes, 5)


def test_names_of_one_topic_and_topics_in_turn() -> None:
    topics = ["a"] * 10 + ["b"] * 4 + ["c"] * 3 + [None] * 5
    tasks = drawn(range(22), 4, num_tasks=6, topics=topics, kind="same_topic")
    for task in tasks:
        assert {topics[number] for number in task.classes} == {task.topic}
    assert Counter(task.topic for task in tasks) == {"a": 3, "b": 3}  # c is too small
    with pytest.raises(BadInputError, match="the largest, 'a', has 10"):
        drawn(range(22), 11, topics=topics, kind="same_topic")


def test_of_many_pictures_of_a_name_some_are_drawn() -> None:
    (task,) = drawn([0] * 50 + [1] * 3, 2, num_tasks=1, max_pictures=5)
    assert Counter(task.classes[target] for target in task.targets) == {0: 5, 1: 3}
    (everything,) = drawn([0] * 50 + [1] * 3, 2, max_pictures=5, kind="all")
    assert len(everything.pictures) == 53


def test_classes_of_one_name_do_not_meet_in_a_task() -> None:
    reading = Reading("object", ("crane", "crane", "dog"), np.array([0, 1, 2]), (None,) * 3)
    (task, *_) = draw_tasks(reading, TaskFamily(num_names=2), num_tasks=3, max_pictures=9, seed=0)
    assert set(task.classes) == {0, 2}


def among_known(
    num_names: int, *, num_tasks: int = 6, known: Sequence[str] = "aaaab", topics: str = "aab"
) -> list[LabelSetTask]:
    """Tasks of one of three held-out things, with two pictures each, beside names of other files."""
    reading = Reading(
        name="object",
        names=(*(f"held out {place}" for place in range(3)), *(f"known {place}" for place in range(len(known)))),
        class_of_picture=np.array([0, 0, 1, 1, 2, 2]),
        topic_of_class=(*topics, *known),
        num_known=len(known),
    )
    family = TaskFamily(kind="held_out_among_known", num_names=num_names)
    return draw_tasks(reading, family, num_tasks=num_tasks, max_pictures=9, seed=0)


def test_one_held_out_thing_stands_among_known_names_of_its_topic() -> None:
    tasks = among_known(4)
    for task in tasks:
        assert len(set(task.classes)) == 4 and task.topic == "a"
        (held_out,) = (number for number in task.classes if number < 3)
        assert {(task.classes[target], picture // 2) for picture, target in zip(task.pictures, task.targets, strict=True)} == {
            (held_out, held_out)
        }
        assert all(3 <= number < 7 for number in task.classes if number != held_out)  # names of its topic
    assert Counter(min(task.classes) for task in tasks) == {0: 3, 1: 3}  # in turn; topic b has one known name only
    assert len({target for task in tasks for target in task.targets}) > 1  # the place does not give it away


def test_held_out_things_without_enough_known_names_are_refused() -> None:
    with pytest.raises(BadInputError, match=r"the 5 known names of its topic .* there are at most 4"):
        among_known(6)
    with pytest.raises(BadInputError, match="none were given \\(names_from\\)"):
        among_known(2, known="")


def test_names_from_elsewhere_are_in_no_other_task() -> None:
    reading = Reading("object", ("cat", "dog", "cow"), np.array([0, 1]), ("a", "a", "a"), num_known=1)
    for kind in ("random", "same_topic", "all"):
        (task,) = draw_tasks(reading, TaskFamily(kind=kind, num_names=2), num_tasks=1, max_pictures=9, seed=0)
        assert set(task.classes) == {0, 1}


def test_a_concept_is_called_what_most_of_its_pictures_are_called() -> None:
    reading = object_reading(
        ["big cat", "cat", " cat", "dog", "dog"], ["c", "c", "c", None, "d"], ["a/b", "a/c", None, "?/?", ""]
    )
    assert reading.names == ("cat", "dog")  # the two that are called dog are one class: no name tells them apart
    assert reading.class_of_picture.tolist() == [0, 0, 0, 1, 1]
    assert reading.topic_of_class == ("a", None)


def test_the_same_pictures_are_asked_for_something_else() -> None:
    style = further_reading("style", ["flat", None, "flat", "3d"], {"flat": "a flat drawing", "3d": "a rendering"})
    assert style.class_of_picture.tolist() == [0, NO_CLASS, 0, 1]
    again = reread(LabelSetTask((7, 8), (3, 1, 0), (0, 0, 1)), style)
    assert (again.classes, again.pictures, again.targets) == ((0, 1), (3, 0), (1, 0))
