"""Make the golden values: `python -m tests.golden.make`, and only when a change of the model's numbers is meant.

The weights come from a seed, the inputs from a formula, so that the file holds results alone and stays small.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.training_runs import losses, request_of, run_worker, small_config, write_shard
from tests.unit.model_helpers import LABELS, trained_like
from training.fold import fold_image_encoder
from training.model.parameter_delta import GroupDelta
from training.model.registry import model_config
from training.score import class_scores
from training.tokenizer import Tokenizer

PATH = Path(__file__).with_name("hyperclip_test.safetensors")
LOSS_TRACE_PATH = Path(__file__).with_name("loss_trace.json")


def fixed_images(count: int, size: int) -> Tensor:
    """(count, 3, size, size): waves of different lengths, values in [-1, 1]."""
    position = torch.arange(size, dtype=torch.float64) / size
    wave = torch.arange(1, 3 * count + 1, dtype=torch.float64)[:, None, None]
    return torch.sin(wave * position[:, None] * 5 + position * (wave + 3) * 2).view(count, 3, size, size).float()


@torch.no_grad()
def golden_values() -> dict[str, Tensor]:
    """Results of every part of the test model, for three pictures and four labels."""
    model = trained_like(model_config("hyperclip_test"), seed=0)
    images = fixed_images(3, model.config.image.image_size)
    text_features = model.encode_text(Tokenizer()(LABELS))
    delta = model.generate(text_features[None])
    specialized = model.encode_image(images, GroupDelta(delta))
    scores = class_scores(specialized, text_features, logit_scale=model.logit_scale, logit_bias=model.logit_bias)
    return {
        "text_features": text_features,
        "delta": delta[0],
        "neutral_features": model.encode_image(images),
        "specialized_features": specialized,
        "folded_features": fold_image_encoder(model.image_encoder, delta[0])(images),
        "scores": scores.softmax,
        "match": scores.match,
    }


def loss_trace() -> list[float]:
    """Losses of the first steps of a small run: data order, augmentation, objective and optimizer in ten numbers."""
    with tempfile.TemporaryDirectory() as folder:
        shards, output = write_shard(Path(folder)), Path(folder) / "output"
        status, said = run_worker(request_of(small_config({}), shards, output))
        assert status == 0, said
        return losses(output)


if __name__ == "__main__":
    LOSS_TRACE_PATH.write_text(json.dumps([round(loss, 4) for loss in loss_trace()]) + "\n")
    save_file({name: value.contiguous() for name, value in golden_values().items()}, PATH)
    print(f"wrote {PATH} ({PATH.stat().st_size:,} bytes)")
