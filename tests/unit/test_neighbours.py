"""Groups of names that are near each other in text space, the same everywhere, none too much alike."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.conditioning import ConditioningPlan, plan_conditioning
from training.conditioning_config import ConditioningConfig
from training.neighbours import similarities

CLUSTERS, EACH, TWINS = 4, 15, 6
"""Each cluster has so many names, and the first few names of the first cluster have a near-synonym each."""


def name_features() -> torch.Tensor:
    """(M, D): clusters around four far directions; name 60 + i says nearly what name i says."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(CLUSTERS, 64).repeat_interleave(EACH, dim=0)
    features = F.normalize(centres + 0.08 * torch.randn(CLUSTERS * EACH, 64, generator=generator), dim=-1)
    synonyms = features[:TWINS] + 0.01 * torch.randn(TWINS, 64, generator=generator)
    return F.normalize(torch.cat([features, synonyms]), dim=-1)


FEATURES = name_features()
NAMES = torch.arange(len(FEATURES)).repeat_interleave(2)  # (132,) two samples a name


def plan(batch_number: int = 0, features: torch.Tensor = FEATURES, **options: Any) -> ConditioningPlan:
    config = ConditioningConfig(groups=(8,), drop_share=0, coherent_share=1, coherence="neighbours", **options)
    topics = torch.zeros_like(NAMES)
    return plan_conditioning(
        config, step=0, batch_number=batch_number, seed=1, name_index=NAMES, topic_ids=topics, name_features=features
    )


def mean_cosine_within(found: ConditioningPlan) -> float:
    cosines = FEATURES @ FEATURES.T
    return float(np.mean([cosines[own][:, own].mean() for own in names_by_group(found)]))


def names_by_group(found: ConditioningPlan) -> list[torch.Tensor]:
    return [names[mask] for names, mask in zip(found.sets, found.mask, strict=True)]


def test_groups_hold_neighbours_and_partition_the_batch_in_the_sizes_drawn() -> None:
    for number in range(5):
        found = plan(number)
        sizes = torch.bincount(found.group_index)
        assert len(sizes) == 8 and sizes.sum() == len(NAMES) and sizes.min() >= 2
        for group, own in enumerate(names_by_group(found)):
            assert own.tolist() == NAMES[found.group_index == group].unique().tolist()
    near, random = (
        np.mean([mean_cosine_within(plan(number, features)) for number in range(20)]) for features in (FEATURES, None)
    )  # type: ignore[arg-type]
    assert near > random + 0.25  # about 0.35 in a random group of a size, 0.77 in a cluster


def test_near_synonyms_do_not_meet_where_there_is_room_elsewhere() -> None:
    def meetings(cap: float) -> int:
        found = [set(own.tolist()) for number in range(20) for own in names_by_group(plan(number, max_similarity=cap))]
        return sum(name in own and 60 + name in own for own in found for name in range(TWINS))

    assert meetings(1.0) > 60  # of 120: they are each other's nearest
    assert meetings(0.95) < 6


def test_no_near_synonym_is_a_distractor() -> None:
    for number in range(5):
        found = plan(number, max_similarity=0.95, distractor_share=1.0)
        for own, group in zip(names_by_group(found), range(8), strict=True):
            trained = set(NAMES[found.group_index == group].tolist())
            added = set(own.tolist()) - trained
            assert added and not any((name + 60 in trained) or (name - 60 in trained) for name in added)


def test_the_order_of_sums_changes_nothing() -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    expected = similarities(FEATURES)
    assert np.array_equal(similarities(FEATURES[:, order]), expected)
    np.testing.assert_allclose(expected, FEATURES.double() @ FEATURES.double().T, atol=64 * 2.0**-20)


def test_fewer_names_than_groups_still_make_groups() -> None:
    config = ConditioningConfig(groups=(8,), drop_share=0, coherent_share=1, coherence="neighbours")
    names = torch.zeros(24, dtype=torch.int64)
    found = plan_conditioning(
        config, step=0, batch_number=0, seed=1, name_index=names, topic_ids=names, name_features=FEATURES[:1]
    )
    assert torch.bincount(found.group_index, minlength=8).min() >= 2


@pytest.mark.parametrize(("ramp", "shares"), [(0, [0, 0.8, 0.8, 0.8]), (10, [0, 0, 0.4, 0.8])])
def test_the_share_of_coherent_batches_grows(ramp: int, shares: list[float]) -> None:
    config = ConditioningConfig(coherent_share=0.8, start_step=5, coherent_ramp_steps=ramp)
    assert [config.coherent_share_at(step) for step in (4, 5, 10, 25)] == pytest.approx(shares)


def test_features_are_asked_for_only_where_they_decide() -> None:
    config = ConditioningConfig(groups=(1, 4), coherent_share=0.5, coherence="neighbours", start_step=5, coherent_ramp_steps=2)
    assert [config.plans_by_features(step) for step in (4, 5, 6)] == [False, False, True]
    for changes in ({"groups": (1,)}, {"coherence": "topic"}, {"coherent_share": 0.0}):
        assert not config.rebuilt(**changes).plans_by_features(9)
