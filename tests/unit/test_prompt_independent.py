"""The control whose hypernetwork reads tokens of its own: a model like any other that the names do not specialize."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.distributed.test_objective import global_batch
from tests.training_runs import small_config, write_shard
from tests.unit.model_helpers import LABELS, make_bundle, random_images, trained_like
from training.bundle import Bundle
from training.conditioning_config import ConditioningConfig
from training.evaluation.shard_set import shard_set
from training.evaluation.zero_shot import EvaluationConfig, evaluate_zero_shot
from training.fold import fold_image_encoder
from training.model.hyperclip import HyperClip, HyperClipConfig
from training.model.hypernetwork import HypernetworkConfig
from training.model.parameter_delta import GroupDelta
from training.model.registry import hyperclip_test
from training.objective import ContrastiveObjective
from training.shard_reader import open_shards
from training.specialize import specialize

TOKENS = 7


def control() -> HyperClipConfig:
    return small_config({"generation": {"tokens": TOKENS}}).architecture()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Saved and loaded, which also reproduces its golden features."""
    return make_bundle(tmp_path_factory.mktemp("control") / "bundle", control())


def test_it_is_the_same_model_but_for_its_tokens() -> None:
    torch.manual_seed(0)
    reader = HyperClip(hyperclip_test()).state_dict()
    torch.manual_seed(0)
    found = HyperClip(control()).state_dict()
    assert found.keys() - reader.keys() == {"hypernetwork.tokens"} and found["hypernetwork.tokens"].shape == (TOKENS, 32)
    assert all(torch.equal(value, found[name]) for name, value in reader.items())


def test_the_delta_is_that_of_its_tokens_whatever_the_names_are() -> None:
    model, reader = trained_like(control()), trained_like(hyperclip_test())
    assert model.hypernetwork is not None and model.hypernetwork.tokens is not None
    reader.load_state_dict({name: value for name, value in model.state_dict().items() if name != "hypernetwork.tokens"})
    names, mask = F.normalize(torch.randn(3, 5, 32), dim=-1), torch.arange(5) < torch.tensor([[5], [2], [1]])
    found = model.generate(names, mask)
    assert found.abs().max() > 0.1
    # rows of one matrix product may round differently
    torch.testing.assert_close(found, reader.generate(model.hypernetwork.tokens[None]).expand(3, -1), rtol=0, atol=1e-6)


def test_training_reaches_the_tokens() -> None:
    model = trained_like(control()).requires_grad_(True).train()
    objective = ContrastiveObjective(model, ConditioningConfig(groups=(3,), loss="softmax", drop_share=0), seed=0)
    output = objective(global_batch(), step=0, batch_number=0)
    output.loss.backward()
    assert model.hypernetwork is not None and model.hypernetwork.tokens is not None
    assert model.hypernetwork.tokens.grad is not None and model.hypernetwork.tokens.grad.abs().max() > 1e-6
    assert output.delta_rms > 0.01 and output.delta_variation < 1e-5


def test_it_is_specialized_and_folded_like_any_model(bundle: Bundle) -> None:
    first, second = specialize(bundle, LABELS), specialize(bundle, LABELS[:2])
    assert first.delta.abs().max() > 0.1
    torch.testing.assert_close(first.delta, second.delta, rtol=0, atol=1e-6)
    folded = fold_image_encoder(bundle.model.image_encoder, first.delta)
    expected = bundle.model.encode_image(random_images(3), GroupDelta(first.delta[None]))
    torch.testing.assert_close(folded(random_images(3)), expected, rtol=0, atol=1e-5)  # folding multiplies in another order


def test_in_evaluation_the_names_of_another_task_do_as_well(bundle: Bundle, tmp_path: Path) -> None:
    pictures = shard_set(open_shards(str(write_shard(tmp_path, split="evaluation", num_samples=40))))
    config = EvaluationConfig(ways=(5,), num_tasks=4, kinds=("random",))
    accuracy = evaluate_zero_shot([bundle], pictures, config, progress=lambda *_: None).headline.accuracy
    assert accuracy["specialized"].mean == accuracy["swapped"].mean


def test_tokens_that_could_say_nothing_are_refused() -> None:
    config = hyperclip_test().hypernetwork
    assert isinstance(config, HypernetworkConfig)
    for changes in ({"tokens": 0}, {"tokens": 4, "zero_mean": True}):
        with pytest.raises(ValueError, match="at least one token, and not zero_mean"):
            replace(config, **changes)  # type: ignore[arg-type]
