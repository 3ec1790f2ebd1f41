"""The order of samples and the plan of groups are pure functions."""

import numpy as np
import pytest
import torch

from infra.errors import BadInputError
from training.conditioning import plan_conditioning
from training.config import ConditioningConfig, local_batch_size
from training.order import epoch_order, rank_positions, sample_at


@pytest.mark.parametrize("num_samples", [1, 63, 64, 5000])
def test_an_epoch_holds_every_sample_once_and_epochs_differ(num_samples: int) -> None:
    first, second = (epoch_order(num_samples, seed=3, epoch=epoch) for epoch in (0, 1))
    assert sorted(first) == list(range(num_samples)) == sorted(second)
    assert num_samples == 1 or not np.array_equal(first, second)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_global_batch_is_the_same_at_any_world_size(world_size: int) -> None:
    positions = [p for rank in range(world_size) for p in rank_positions(5, 12, rank=rank, world_size=world_size)]
    assert positions == list(range(60, 72))
    assert [sample_at(p, 50, seed=0) for p in positions] == [sample_at(p, 50, seed=0) for p in range(60, 72)]


def test_a_world_size_that_does_not_divide_names_those_that_do() -> None:
    with pytest.raises(BadInputError, match="worker counts that fit: 3, 4, 6"):
        local_batch_size(24, 5)


def plan(config: ConditioningConfig, *, step: int = 10, batch_number: int = 0):  # type: ignore[no-untyped-def]
    names, topics = torch.arange(24) % 20, torch.arange(24) % 4
    return plan_conditioning(config, step=step, batch_number=batch_number, seed=1, name_index=names, topic_ids=topics)


def test_groups_are_conditioned_on_their_own_unique_names() -> None:
    found = plan(ConditioningConfig(groups=(4,), drop_share=0))
    for group in range(4):
        own = sorted(set((torch.arange(24) % 20)[found.group_index == group].tolist()))
        assert found.sets[group][found.mask[group]].tolist() == own


def test_groups_share_the_batch_in_varying_sizes_that_leave_every_image_a_negative() -> None:
    drawn = [torch.bincount(plan(ConditioningConfig(groups=(4,)), batch_number=n).group_index) for n in range(50)]
    assert all(len(sizes) == 4 and sizes.sum() == 24 and sizes.min() >= 2 for sizes in drawn)
    assert len({tuple(sizes.tolist()) for sizes in drawn}) > 25
    assert max(int(sizes.max()) for sizes in drawn) >= 12  # half of the batch, where an equal share is a quarter


def test_as_many_groups_as_pairs_are_pairs() -> None:
    assert torch.bincount(plan(ConditioningConfig(groups=(12,))).group_index).tolist() == [2] * 12


def test_coherent_groups_keep_topics_side_by_side() -> None:
    found = plan(ConditioningConfig(groups=(4,), coherent_share=1.0))
    topics = torch.arange(24) % 4
    # 4 topics laid end to end and cut in 4: at most 3 topics are met by a cut
    assert sum(len(set(topics[found.group_index == group].tolist())) for group in range(4)) <= 4 + 3


def test_a_dropped_condition_costs_one_name() -> None:
    found = plan(ConditioningConfig(groups=(4,), drop_share=1))
    assert not found.conditioned.any() and found.sets.shape == (4, 1)


def test_nothing_is_conditioned_before_start_step() -> None:
    before = plan(ConditioningConfig(groups=(4,), start_step=11, drop_share=0))
    assert before.num_groups == 1 and not before.conditioned.any()
    assert plan(ConditioningConfig(groups=(4,), start_step=10, drop_share=0)).conditioned.all()


def test_distractors_come_from_other_groups() -> None:
    plain, more = (plan(ConditioningConfig(groups=(4,), drop_share=0, distractor_share=share)) for share in (0.0, 0.5))
    own = plain.mask.sum(1)
    assert torch.equal(more.mask.sum(1), own + torch.minimum((own / 2).round().long(), 20 - own))  # 20 names in all
    for group in range(4):
        chosen = more.sets[group][more.mask[group]].tolist()
        assert len(chosen) == len(set(chosen))
