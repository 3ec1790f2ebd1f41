"""Groups of one topic each, and which learned delta their sets are pulled towards."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.distributed.test_objective import BATCH, global_batch
from tests.unit.model_helpers import config_with
from training.conditioning import plan_conditioning
from training.conditioning_config import ConditioningConfig
from training.config import TrainConfig
from training.model.hyperclip import HyperClip
from training.objective import ContrastiveObjective
from training.topics import cut_by_topic, topic_id, topic_of

GROUPS = ["food/fruit", "food", "animals/bird", "??/?", "", "animals"] * 4 + ["flags"] * 3
IDS = np.array([topic_id(group) for group in GROUPS])


def test_a_topic_is_what_stands_before_the_slash() -> None:
    assert [topic_of(group) for group in ("food/fruit", "food", "?/?", "", None)] == ["food", "food", None, None, None]
    assert topic_id("food/fruit") == topic_id("food/vegetable") != topic_id("animals")
    assert topic_id("?/?") == topic_id(None)


def test_each_named_topic_is_a_group_and_all_the_rest_another() -> None:
    group_index, learned_delta = cut_by_topic(IDS, ["animals", "flags", "food"])
    assert learned_delta.tolist() == [0, 1, 3]  # three flags are too few for a set of their own
    expected = {"animals": 1, "food": 2}
    assert group_index.tolist() == [expected.get(topic_of(group) or "", 0) for group in GROUPS]


def plan(*, coherent_share: float, step: int = 10):  # type: ignore[no-untyped-def]
    config = ConditioningConfig(
        groups=(4,), topics=("animals", "food"), coherent_share=coherent_share, drop_share=0, start_step=5
    )
    ids = torch.from_numpy(IDS)
    return plan_conditioning(config, step=step, batch_number=0, seed=0, name_index=torch.arange(len(IDS)), topic_ids=ids)


def test_only_coherent_batches_are_cut_by_topic() -> None:
    by_topic, at_random, before = plan(coherent_share=1), plan(coherent_share=0), plan(coherent_share=1, step=4)
    assert by_topic.learned_delta.tolist() == [0, 1, 2]
    assert by_topic.mask.sum(1).tolist() == [11, 8, 8]
    assert at_random.learned_delta.tolist() == [0, 0, 0, 0]
    assert before.num_groups == 1 and before.learned_delta.tolist() == [0]


def test_sets_are_pulled_to_the_learned_delta_of_their_topic() -> None:
    torch.manual_seed(0)
    model = HyperClip(config_with(basis=3))
    ids = torch.tensor([topic_id(("a", "b", "c")[i % 3]) for i in range(BATCH)])
    batch = type(global_batch())(**{**vars(global_batch()), "topic_ids": ids})
    config = ConditioningConfig(topics=("a", "b"), coherent_share=1, drop_share=0, routing_weight=1)
    objective = ContrastiveObjective(model, config, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first = objective(batch, step=0, batch_number=0)
    without = ContrastiveObjective(model, config.model_copy(update={"routing_weight": 0.0}), seed=0)
    torch.testing.assert_close(first.loss - without(batch, step=0, batch_number=0).loss, first.routing_loss)
    for _ in range(60):
        output = objective(batch, step=0, batch_number=0)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert not output.routing_loss.requires_grad
    assert output.routing_loss < 0.1 * first.routing_loss


def test_routing_needs_as_many_learned_deltas_as_topics_and_one() -> None:
    settings = {"model": "hyperclip_test", "num_steps": 1, "contrastive_batch_size": 8}
    conditioning = {"topics": ["a", "b"], "routing_weight": 0.1}
    TrainConfig(**settings, conditioning=conditioning, generation={"basis": 3})
    TrainConfig(**settings | {"model": "siglip_test"}, conditioning=conditioning)  # a twin has nothing to route
    with pytest.raises(ValidationError, match=r"set generation\.basis, now 4, to 3"):
        TrainConfig(**settings, conditioning=conditioning, generation={"basis": 4})
