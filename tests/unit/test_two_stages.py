"""Starting from a bundle and freezing parts: what fits, what stands still, what is an error."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from infra.errors import BadInputError
from tests.training_runs import small_config
from tests.unit.model_helpers import config_with, make_bundle, random_images, trained_like
from training.engine import parameter_groups
from training.freezing import Freezer, frozen_names, is_of_deltas
from training.initial import read_initial, start_from
from training.model.hyperclip import HyperClip
from training.model.image_encoder import Kind
from training.model.parameter_delta import GroupDelta
from training.model.registry import siglip_twin
from training.schedule import rate_of_step

ALL: tuple[Kind, ...] = ("norm", "convolution", "pointwise", "projection")


def test_a_hyperclip_started_from_its_twin_is_the_twin(tmp_path: Path) -> None:
    config = config_with(generates=ALL)
    twin = make_bundle(tmp_path / "twin", siglip_twin(config)).model
    model = HyperClip(config)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    start_from(model, read_initial(str(tmp_path / "twin")), uri="twin")
    images = random_images(3)
    delta = model.generate(torch.nn.functional.normalize(torch.randn(1, 4, 32), dim=-1))
    assert torch.equal(model.eval().encode_image(images, GroupDelta(delta)), twin.encode_image(images))
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items() if is_of_deltas(name))


def test_a_hyperclip_can_go_on_from_a_hyperclip(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    model = HyperClip(config_with())
    start_from(model, bundle, uri="bundle")
    assert all(torch.equal(value, bundle.model.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_bundle_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    twin = make_bundle(tmp_path / "twin", siglip_twin(config_with()))
    other = replace(config_with(), text=replace(config_with().text, vocab_size=50_000, layers=2))
    with pytest.raises(
        BadInputError, match=r"it lacks text_encoder.blocks.1.* more; it has text_encoder.token_embedding.weight"
    ):
        start_from(HyperClip(other), twin, uri="twin")
    hyperclip = make_bundle(tmp_path / "hyperclip")
    with pytest.raises(BadInputError, match=r"init_from=there is a hyperclip_test, .*it has besides hypernetwork\."):
        start_from(HyperClip(siglip_twin(config_with())), hyperclip, uri="there")
    with pytest.raises(BadInputError, match=r"hypernetwork\.output\.bias"):  # a delta of other values is not half taken over
        start_from(HyperClip(config_with(generates=ALL)), hyperclip, uri="there")
    with pytest.raises(BadInputError, match="not a model bundle"):
        read_initial(str(tmp_path))


def test_frozen_parts_have_no_gradient_and_do_not_count_statistics() -> None:
    model = trained_like(config_with(generates=ALL)).requires_grad_(True).train()
    freezer = Freezer(model, ["image_trunk", "projection", "text_encoder", "logit"])
    freezer.set(frozen=True)
    before = {name: value.clone() for name, value in model.named_buffers()}
    delta = model.generate(torch.randn(1, 4, 32))
    model.encode_image(random_images(4), GroupDelta(delta))[:, 0].sum().backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in model.named_parameters() if is_of_deltas(name)}
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    freezer.set(frozen=False)
    assert all(parameter.requires_grad for parameter in model.parameters()) and model.image_encoder.trunk.training


def test_the_base_of_the_norms_can_stand_still_alone() -> None:
    model = HyperClip(config_with())
    names = frozen_names(model, ["norm"])
    assert len(names) == 2 * len(model.image_encoder.norms)
    assert names < frozen_names(model, ["image_trunk"])
    Freezer(model, ["norm"]).set(frozen=True)
    assert model.image_encoder.trunk.training


def test_every_parameter_is_of_one_part_or_of_the_deltas() -> None:
    model = HyperClip(config_with(generates=ALL))
    parts = [frozen_names(model, [part]) for part in ("image_trunk", "projection", "text_encoder", "logit")]
    assert frozen_names(model, ["logit"]) == {"log_scale", "bias"}
    of_deltas = {name for name, _ in model.named_parameters() if is_of_deltas(name)}
    names = [name for part in (*parts, of_deltas) for name in part]
    assert sorted(names) == sorted(dict(model.named_parameters()))


def test_the_second_stage_has_a_lower_rate() -> None:
    config = small_config({"freeze": ["text_encoder"], "freeze_steps": 5, "unfrozen_lr_scale": 0.1})
    plain = small_config({})
    assert rate_of_step(4, config) == rate_of_step(4, plain)
    assert rate_of_step(5, config) == pytest.approx(0.1 * rate_of_step(5, plain))


def test_the_last_layer_of_the_hypernetwork_has_a_rate_of_its_own() -> None:
    config = small_config({"optimizer": {"hypernetwork_lr_scale": 3.0}})
    model = HyperClip(config.architecture())
    groups = parameter_groups(model, config.optimizer)
    scaled = {id(parameter) for group in groups if group["lr_scale"] == 3 for parameter in group["params"]}
    assert scaled == {id(value) for name, value in model.named_parameters() if name.startswith("hypernetwork.output.")}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ["logit"]}, "give both, or neither"),
        ({"freeze_steps": 3}, "give both, or neither"),
        (
            {"model": "siglip_test", "freeze": ["image_trunk", "projection", "text_encoder", "logit"], "freeze_steps": 3},
            "nothing of siglip_test is left to train",
        ),
        ({"model": "siglip_test", "generation": {"projection_rank": 3}}, "siglip_test has no hypernetwork"),
        ({"conditioning": {"start_step": 9}, "num_steps": 9}, "num_steps=9 ends before conditioning.start_step=9"),
        ({"generation": {"generates": []}}, "at least 1 item"),
        ({"generation": {"generates": ["norm", "norm"]}}, "each once"),
    ],
)
def test_stages_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        small_config(changes)


def test_a_run_says_what_its_model_generates() -> None:
    changes = {"generates": ["norm", "pointwise"], "pointwise_rank": 2, "pointwise_stages": 1, "basis": 8, "zero_mean": True}
    model = small_config({"generation": changes}).architecture()
    assert model.image.generates == ("norm", "pointwise")
    assert (model.image.pointwise_rank, model.image.pointwise_stages) == (2, 1)
    assert model.hypernetwork is not None and (model.hypernetwork.basis, model.hypernetwork.zero_mean) == (8, True)
    assert small_config({}).architecture().image.generates == ("norm",)
