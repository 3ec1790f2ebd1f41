"""The order of samples and the plan of groups are pure functions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import BadInputError
from training.conditioning import plan_conditioning
from training.conditioning_config import ConditioningConfig
from training.config import local_batch_size
from training.order import BLOCK, ROUND, WINDOW_BLOCKS, EpochOrder, WeightedOrder, block_bounds, rank_share, round_shares

SHARD_SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=20)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(SHARD_SIZES, st.integers(0, 2**31), st.integers(0, 10**6))
def test_every_epoch_holds_every_sample_once(shard_sizes: list[int], seed: int, epoch: int) -> None:
    size = sum(shard_sizes)
    samples = EpochOrder(shard_sizes, seed=seed).samples_at(epoch * size + np.arange(size))
    assert sorted(samples) == list(range(size))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(SHARD_SIZES, st.data())
def test_the_sample_at_a_position_depends_on_nothing_else(shard_sizes: list[int], data: st.DataObject) -> None:
    stream = EpochOrder(shard_sizes, seed=1).samples_at(np.arange(3 * sum(shard_sizes)))
    positions = data.draw(st.lists(st.integers(0, len(stream) - 1), min_size=1))
    assert EpochOrder(shard_sizes, seed=1).samples_at(np.array(positions)).tolist() == stream[positions].tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = [EpochOrder([5000], seed=seed).samples_at(np.arange(10_000)) for seed in (3, 4)]
    epochs = [*orders[0].reshape(2, -1), *orders[1].reshape(2, -1)]
    assert all(np.mean(one == other) < 0.01 for i, one in enumerate(epochs) for other in epochs[:i])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(SHARD_SIZES)
def test_blocks_are_short_and_never_straddle_shards(shard_sizes: list[int]) -> None:
    bounds = block_bounds(shard_sizes)
    assert set(np.cumsum([0, *shard_sizes])) <= set(bounds.tolist())
    assert np.diff(bounds).min() >= 1 and np.diff(bounds).max() <= BLOCK


def test_a_window_of_positions_touches_few_blocks_of_many_shards() -> None:
    shard_sizes = [1000] * 500
    samples = EpochOrder(shard_sizes, seed=0).samples_at(np.arange(50_000, 52_000))
    blocks = np.unique(np.searchsorted(block_bounds(shard_sizes), samples, side="right"))
    assert len(blocks) <= 2 * WINDOW_BLOCKS  # 2,000 positions lie in two windows at most
    assert len(np.unique(samples // 1000)) > WINDOW_BLOCKS / 2  # blocks of all shards meet


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_global_batch_is_the_same_at_any_world_size(world_size: int) -> None:
    order = EpochOrder([20, 30], seed=0)
    plans = [rank_share(order, 5, contrastive_batch_size=12, rank=rank, world_size=world_size) for rank in range(world_size)]
    positions, samples = (np.concatenate(part) for part in zip(*plans, strict=True))
    assert sorted(positions) == list(range(60, 72))
    assert samples.tolist() == order.samples_at(positions).tolist() == sorted(samples)


def test_ranks_read_parts_of_a_window_of_their_own() -> None:
    order, bounds = EpochOrder([1000] * 100, seed=0), block_bounds([1000] * 100)
    of_rank = [
        {
            block
            for batch in range(8)  # 8 x 500 positions: a window
            for block in np.searchsorted(
                bounds, rank_share(order, batch, contrastive_batch_size=500, rank=rank, world_size=5).samples, side="right"
            ).tolist()
        }
        for rank in range(5)
    ]
    # without the sorting every rank would read nearly all blocks: a sum of five times their union
    assert sum(map(len, of_rank)) < 2 * len(set.union(*of_rank))


def test_a_weighted_stream_holds_its_shares_in_every_round_and_each_source_goes_through_its_epochs() -> None:
    shard_sizes = [700, 900]
    sources = [np.flatnonzero(np.arange(1600) % 3 == 0), np.flatnonzero(np.arange(1600) % 3 != 0)]
    order = WeightedOrder(sources, shard_sizes, weights=[3, 1], seed=5)
    stream = order.samples_at(np.arange(3 * ROUND))
    of_first = stream % 3 == 0
    assert of_first.reshape(3, ROUND).sum(axis=1).tolist() == [3 * ROUND // 4] * 3
    for source, chosen in zip(sources, (of_first, ~of_first), strict=True):
        own = stream[chosen]
        whole = own[: len(own) // len(source) * len(source)].reshape(-1, len(source))
        assert len(whole) and all(sorted(epoch) == source.tolist() for epoch in whole)
    positions = np.array([3 * ROUND - 1, 17, ROUND, 5000])
    assert (
        WeightedOrder(sources, shard_sizes, weights=[6, 2], seed=5).samples_at(positions).tolist() == stream[positions].tolist()
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=200))
def test_round_shares_add_up_and_leave_out_nobody(weights: list[float]) -> None:
    shares = round_shares(weights)
    assert shares.sum() == ROUND and shares.min() >= 1
    ideal = np.array(weights) / np.sum(weights) * ROUND
    assert (shares <= np.maximum(np.ceil(ideal), 1)).all()


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
