"""Distillation: the divergence from a teacher, who takes part in a step and in nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from infra.errors import BadInputError
from tests.distributed.test_objective import global_batch
from tests.training_runs import small_config
from tests.unit.loss_helpers import FeatureBatch, feature_batch
from tests.unit.model_helpers import config_with, make_bundle, trained_like
from training.conditioning_config import ConditioningConfig
from training.config import TrainConfig
from training.distillation import Features, Teacher, distillation_loss, read_teacher
from training.model.hyperclip import HyperClip, HyperClipConfig
from training.model.registry import hyperclip_test, siglip_twin
from training.objective import ContrastiveObjective, ObjectiveOutput

SAMPLES, TEXTS = 14, 9
CPU = torch.device("cpu")


def features_of(batch: FeatureBatch, *, scale: float = 12.0) -> Features:
    return Features(batch.image_features.double(), batch.text_features.double(), torch.tensor(scale).double())


def teacher_features() -> Features:
    """Of another size than the student's, and surer."""
    generator = torch.Generator().manual_seed(7)
    images, texts = (torch.randn(rows, 24, generator=generator).double() for rows in (SAMPLES, TEXTS))
    normalize = torch.nn.functional.normalize
    return Features(normalize(images, dim=-1), normalize(texts, dim=-1), torch.tensor(20.0).double())


def reference(student: Features, teacher: Features, batch: FeatureBatch) -> Tensor:
    """One sample after the other, with nothing in a distribution but its own group."""
    text, group = batch.pairs.text, batch.pairs.group
    total = torch.zeros((), dtype=torch.float64)
    for sample in range(SAMPLES):
        others = [n for n in range(SAMPLES) if group is None or group[n] == group[sample]]
        for direction in ("captions of an image", "images of a caption"):
            log_shares = []
            for model in (teacher, student):
                if direction == "captions of an image":
                    cosines = [model.images[sample] @ model.texts[text[n]] for n in others]
                else:
                    cosines = [model.texts[text[sample]] @ model.images[n] for n in others]
                logits = model.logit_scale * torch.stack(cosines)
                log_shares.append(logits - logits.exp().sum().log())
            of_teacher, of_student = log_shares
            total = total + (of_teacher.exp() * (of_teacher - of_student)).sum() / SAMPLES
    return total


@pytest.mark.parametrize("groups", [1, 4])
def test_loss_and_gradients_are_those_of_the_reference(groups: int) -> None:
    batch, teacher = feature_batch(SAMPLES, TEXTS, groups=groups), teacher_features()
    assert len(batch.pairs.text.unique()) < SAMPLES  # captions repeat
    found = []
    for loss_of in (
        lambda student: distillation_loss(student, teacher, pairs=batch.pairs, num_texts=TEXTS),
        lambda student: reference(student, teacher, batch),
    ):
        student = features_of(batch)
        inputs = [value.requires_grad_() for value in vars(student).values()]
        loss = loss_of(student)
        found.append([loss.detach().double(), *torch.autograd.grad(loss, inputs)])
    assert found[1][0] > 0.1
    for ours, expected in zip(*found, strict=True):
        # the loss is fp32; of the largest value of each tensor
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6 * expected.abs().max().item())


@pytest.mark.parametrize("groups", [1, 4])
def test_who_says_the_same_as_the_teacher_has_no_loss(groups: int) -> None:
    batch = feature_batch(SAMPLES, TEXTS, groups=groups)
    student = features_of(batch)
    for value in vars(student).values():
        value.requires_grad_()
    loss = distillation_loss(student, features_of(batch), pairs=batch.pairs, num_texts=TEXTS)
    loss.backward()
    assert loss.abs() < 1e-5  # fp32
    assert all(value.grad.abs().max() < 1e-6 for value in vars(student).values())
    surer = distillation_loss(student, features_of(batch, scale=30.0), pairs=batch.pairs, num_texts=TEXTS)
    assert surer > 0.05  # each has its own scale


def test_an_image_alone_in_its_group_has_nothing_to_learn() -> None:
    batch = feature_batch(SAMPLES, TEXTS)
    pairs = replace(batch.pairs, group=torch.arange(SAMPLES))
    student = features_of(batch)
    student.images.requires_grad_()
    loss = distillation_loss(student, teacher_features(), pairs=pairs, num_texts=TEXTS)
    loss.backward()
    assert loss == 0 and student.images.grad is not None and not student.images.grad.any()


def teacher_like(config: HyperClipConfig, *, weight: float = 0.5) -> Teacher:
    return Teacher(trained_like(config, seed=3), weight=weight, digest="")


def objective_output(model: HyperClip, teacher: Teacher | None, **conditioning: object) -> ObjectiveOutput:
    config = ConditioningConfig.model_validate({"groups": (3,), "drop_share": 0.0, **conditioning})
    found: ObjectiveOutput = ContrastiveObjective(model, config, seed=0, teacher=teacher)(
        global_batch(), step=0, batch_number=0
    )
    return found


@pytest.mark.parametrize("kind", ["twin", "hyperclip", "hyperclip, softmax"])
def test_it_is_added_with_its_weight_to_whatever_the_loss_is(kind: str) -> None:
    config = siglip_twin(hyperclip_test()) if kind == "twin" else hyperclip_test()
    conditioning = {"loss": "softmax"} if kind.endswith("softmax") else {}
    model, teacher = trained_like(config).requires_grad_(True), teacher_like(siglip_twin(config_with(trunk="test_resnet")))
    without, with_it = (objective_output(model, one, **conditioning) for one in (None, teacher))
    assert without.distillation_loss == 0 < with_it.distillation_loss
    torch.testing.assert_close(with_it.loss, without.loss + 0.5 * with_it.distillation_loss)
    plain, taught = (torch.autograd.grad(one.loss, model.image_encoder.projection.weight)[0] for one in (without, with_it))
    assert (plain - taught).abs().max() > 1e-4


def test_images_are_compared_as_their_group_sees_them() -> None:
    model = trained_like(hyperclip_test())
    teacher = Teacher(trained_like(hyperclip_test()), weight=1.0, digest="")  # its own neutral parameters
    assert objective_output(model, teacher, start_step=1).distillation_loss.abs() < 1e-5
    assert objective_output(model, teacher).distillation_loss > 1e-3


def test_the_teacher_stays_as_it_is_and_is_no_part_of_the_model() -> None:
    teacher = teacher_like(siglip_twin(hyperclip_test()))
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    model = HyperClip(hyperclip_test()).train()
    objective = ContrastiveObjective(model, ConditioningConfig(), seed=0, teacher=teacher).train()
    assert len(list(objective.parameters())) == len(list(model.parameters()))
    objective(global_batch(), step=0, batch_number=0).loss.backward()
    assert not teacher.model.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.model.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def config_taught_by(folder: Path) -> TrainConfig:
    return small_config({"distillation": {"teacher": str(folder)}})


def test_a_teacher_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    config = config_with(trunk="test_resnet", image_size=48)
    make_bundle(tmp_path / "other", replace(config, text=replace(config.text, context_length=100)))
    with pytest.raises(
        BadInputError, match=r"other is a hyperclip_test, .* image_size 48 instead of 32; context_length 100 instead of 77"
    ):
        read_teacher(config_taught_by(tmp_path / "other"), device=CPU)
    with pytest.raises(BadInputError, match="not a model bundle"):
        read_teacher(config_taught_by(tmp_path), device=CPU)
    bundle = make_bundle(tmp_path / "good", siglip_twin(config_with(trunk="test_resnet")))
    teacher = read_teacher(config_taught_by(tmp_path / "good"), device=CPU)
    assert teacher is not None and (teacher.weight, teacher.digest) == (1.0, bundle.digest)


def test_a_teacher_belongs_to_what_a_run_is() -> None:
    plain, taught = small_config({}), small_config({"distillation": {"teacher": "a"}})
    assert "distillation" not in plain.identity()  # addresses of runs without one are what they were
    assert taught.identity()["distillation"] == {"teacher": "a", "weight": 1.0}
    assert taught.identity(teacher="digest")["distillation"]["teacher"] == "digest"
    assert small_config({"distillation": {"teacher": "a", "weight": 2}}).identity() != taught.identity()
