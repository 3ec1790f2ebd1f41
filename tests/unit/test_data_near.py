"""Near duplicates: the fast search finds what the simple one and all pairs find, on random and on hostile hashes."""

import random
from itertools import combinations
from typing import Any

import numpy as np
import pytest

import data_prep.curation.near
from data_prep.curation.dedup import digests_of, first_of_equal, first_places
from data_prep.curation.near import UNKNOWN, Hashes, greedy_duplicates, nearest
from tests.unit.banded_duplicates import near_duplicates
from tests.unit.data_helpers import sha256


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that even a few hashes are gone through in several parts, and pairs come in several blocks."""
    monkeypatch.setattr(data_prep.curation.near, "_FIRST_PART", 16)
    monkeypatch.setattr(data_prep.curation.near, "_PAIRS_AT_ONCE", 64)
    monkeypatch.setattr(data_prep.curation.near, "_PAIRS_HELD", 200)
    monkeypatch.setattr(data_prep.curation.near, "_PAIRS_AS_LISTS", 50)
    monkeypatch.setattr(data_prep.curation.near, "_CROWDED", 8)


def hashes(values: list[int], concepts: list[str | None] | None = None) -> Hashes:
    known: dict[str, int] = {}
    codes = [UNKNOWN if name is None else known.setdefault(name, len(known)) for name in concepts or [None] * len(values)]
    return Hashes(np.array(values, np.uint64), np.array(codes, np.int64))


def found(values: list[int], max_distance: int, concepts: list[str | None] | None = None) -> list[int | None]:
    places = greedy_duplicates(hashes(values, concepts), max_distance=max_distance).place
    return [None if place < 0 else int(place) for place in places]


def by_all_pairs(values: list[int], max_distance: int) -> list[int | None]:
    """The rule, obviously right."""
    answers: list[int | None] = []
    for place, value in enumerate(values):
        kept = [other for other in range(place) if answers[other] is None]
        answers.append(min((o for o in kept if (value ^ values[o]).bit_count() <= max_distance), default=None))
    return answers


def clustered(rng: random.Random, *, count: int, centres: int, radius: int) -> list[int]:
    middles = [rng.getrandbits(64) for _ in range(centres)]
    return [
        rng.choice(middles) ^ sum(1 << bit for bit in rng.sample(range(64), rng.randrange(radius + 1))) for _ in range(count)
    ]


@pytest.mark.parametrize("max_distance", [0, 1, 4, 7])
@pytest.mark.parametrize("names", [0, 1, 3])
def test_the_fast_search_finds_what_the_simple_one_finds(max_distance: int, names: int) -> None:
    rng = random.Random(max_distance)
    for centres in (1, 5, 40):
        values = clustered(rng, count=250, centres=centres, radius=2 * max_distance + 1)
        concepts = [rng.choice([None, *(f"concept {i}" for i in range(names))]) for _ in values]
        expected = near_duplicates(values, max_distance=max_distance, concepts=concepts)
        assert found(values, max_distance, concepts) == expected
        assert any(place is not None for place in expected)


@pytest.mark.parametrize("max_distance", [4, 16])
def test_the_fast_search_finds_what_all_pairs_find(max_distance: int) -> None:
    values = clustered(random.Random(0), count=120, centres=10, radius=2 * max_distance)
    assert found(values, max_distance) == by_all_pairs(values, max_distance)


@pytest.mark.parametrize(
    "values",
    [
        [0] * 300,
        [(1 << bits) - 1 for bits in range(65)] * 3,  # a chain of single steps from black to white
        [0, *(1 << a | 1 << b for a, b in combinations(range(16), 2))],  # a ball: all near its centre, few near each other
        [(value << 44) | value for value in range(200)],  # all alike in the middle
        [],
    ],
)
def test_hashes_made_to_be_hard(values: list[int]) -> None:
    for order in range(3):
        shuffled = random.Random(order).sample(values, len(values))
        assert found(shuffled, 4) == near_duplicates(shuffled, max_distance=4)


def compared_and_held(monkeypatch: pytest.MonkeyPatch, values: list[int]) -> tuple[list[int | None], int, int]:
    """The answer, how many pairs were compared for it, and how many near ones were held at once."""
    compared, held = [0], [0]
    count_bits, pairs_within = np.bitwise_count, data_prep.curation.near._pairs_within

    def counted(differences: np.ndarray) -> np.ndarray:
        compared[0] += differences.size
        return count_bits(differences)

    def measured(*arguments: Any) -> Any:
        if (pairs := pairs_within(*arguments)) is not None:
            held[0] = max(held[0], len(pairs[0]))
        return pairs

    monkeypatch.setattr(np, "bitwise_count", counted)
    monkeypatch.setattr(data_prep.curation.near, "_pairs_within", measured)
    answer = found(values, 4)
    return answer, compared[0], held[0]


def test_hashes_made_to_meet_at_one_key_are_told_apart_by_their_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    values = [rng.getrandbits(43) << 21 for _ in range(4_000)]  # the lowest bits are the key of a table
    monkeypatch.setattr(data_prep.curation.near, "_FIRST_PART", 1 << 12)
    monkeypatch.setattr(data_prep.curation.near, "_CROWDED", 64)
    answer, compared, _ = compared_and_held(monkeypatch, values)
    assert answer == near_duplicates(values, max_distance=4)
    assert compared < len(values) ** 2 / 10  # one table alone would compare all with all


def test_balls_of_near_hashes_never_give_all_their_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    around = [0, *(1 << a for a in range(24)), *(1 << a | 1 << b for a, b in combinations(range(24), 2))]
    values = [centre ^ bits for centre in (rng.getrandbits(64) for _ in range(8)) for bits in around]
    monkeypatch.setattr(data_prep.curation.near, "_FIRST_PART", 1 << 12)
    answer, _, held = compared_and_held(monkeypatch, values)
    assert answer == near_duplicates(values, max_distance=4)
    assert 0 < held <= data_prep.curation.near._PAIRS_HELD


@pytest.mark.parametrize("names", [0, 3])
def test_each_near_pair_comes_once(names: int) -> None:
    rng = random.Random(names)
    values = sorted(set(clustered(rng, count=300, centres=4, radius=3)))
    asked = hashes(values, [rng.choice([None, *(f"concept {i}" for i in range(names))]) for _ in values])
    pairs = [
        pair
        for left, right, _ in data_prep.curation.near._pairs_between(asked, asked, 4)
        for pair in zip(left.tolist(), right.tolist(), strict=True)
    ]
    assert len(pairs) == len(set(pairs)) > len(values)


def test_equal_hashes_of_many_concepts_do_not_swallow_each_other() -> None:
    concepts = [f"concept {i % 100}" for i in range(300)]
    assert found([7] * 300, 4, concepts) == [None] * 100 + [i % 100 for i in range(200)]
    assert found([5, 5, 5, 5], 0, ["red", "blue", "red", None]) == [None, None, 0, 0]


def test_ten_million_hashes_get_longer_keys() -> None:
    assert len(data_prep.curation.near._masks(4, 10_000)) == len(data_prep.curation.near._masks(4, 10_000_000)) == 15
    assert len(data_prep.curation.near._masks(4, 100_000_000)) == 35


def test_the_nearest_of_another_set_is_named_and_the_first_of_equally_near_ones() -> None:
    answer = nearest(hashes([0b1111, 1 << 40]), hashes([0b0001, 0b0111, 0b1110, 0b1111 << 50]), max_distance=3)
    assert (answer.place.tolist(), answer.distance.tolist()) == ([1, 0], [1, 2])
    answer = nearest(hashes([0b1111 << 20]), hashes([0, 1]), max_distance=3)
    assert (answer.place.tolist(), answer.distance.tolist()) == ([-1], [-1])


def test_the_first_of_equal_digests_is_kept() -> None:
    digests = digests_of([sha256(name.encode()) for name in "abacba"])
    assert first_of_equal(digests).tolist() == [-1, -1, 0, -1, 1, 0]
    assert first_places(digests, among=digests[1:4]).tolist() == [1, 0, 1, 2, 0, 1]


def test_digests_that_share_their_beginning_are_no_duplicates() -> None:
    digests = digests_of(["00" * 8 + ending * 24 for ending in ("01", "02", "01", "03", "02")])
    assert first_of_equal(digests).tolist() == [-1, -1, 0, -1, 1]
