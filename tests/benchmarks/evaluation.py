"""Pictures a second of zero-shot evaluation: ours over CLIP_benchmark, same folder, same SigLIP model, equal top-1.

The set is the bundled sample, each picture as it is and mirrored, in CLIP_benchmark's own WebDataset format, seven templates a
class.  CLIP_benchmark runs `zeroshot_classification.evaluate` as its command does, with its own DataLoader and an adapter that
gives it our encoders, tokenizer and preprocessing; its best number of workers and batch size are looked for first.  Ours is
`evaluate_zero_shot` with one task of all names: it also gives intervals, the free tricks and calibration.  The model is trained
for some seconds beforehand, so that top-1 is far from chance and a difference would show.
"""

import contextlib
import io
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_prep.sample.pictures import read_sample
from infra import images
from tests.result import benchmark_arguments, benchmark_result, environment, interleaved, measure, seconds, spread
from training.bundle import Bundle
from training.evaluation.webdataset_set import webdataset_set
from training.evaluation.zero_shot import EvaluationConfig, evaluate_zero_shot
from training.loss import siglip_loss
from training.model.hyperclip import HyperClip
from training.model.registry import model_config
from training.preprocess import PreprocessConfig, centre_square, normalize
from training.tokenizer import Tokenizer

SAME_TOP_1 = 0.0005
"""Two programs round differently: of 3,740 pictures one may fall to the other side."""
TEMPLATES = (
    "{c}",
    "a drawing of a {c}.",
    "an icon of a {c}.",
    "a picture of the {c}.",
    "a small {c}.",
    "a drawing of the {c}.",
    "a {c} on white.",
)
PER_SHARD = 1000
PEER_WORKERS, PEER_BATCHES = (1, 2, 4), (64, 256)


def write_set(folder: Path, *, num_pictures: int) -> int:
    """A folder as `clip_benchmark_export_wds` writes it; returns how many pictures it holds."""
    rows = read_sample().select(["image", "caption"]).to_pylist()[:num_pictures]
    names = list(dict.fromkeys(row["caption"] for row in rows))
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "zeroshot_classification_templates.txt").write_text("".join(f"{template}\n" for template in TEMPLATES))
    samples = [(data, names.index(row["caption"])) for row in rows for data in _both_ways(row["image"])]
    starts = range(0, len(samples), PER_SHARD)
    (folder / "test" / "nshards.txt").write_text(str(len(starts)))
    for shard, start in enumerate(starts):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for number, (data, label) in enumerate(samples[start : start + PER_SHARD], start):
                for suffix, content in (("cls", str(label).encode()), ("webp", data)):
                    member = tarfile.TarInfo(f"s{number:07d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return len(samples)


def _both_ways(data: bytes) -> Iterator[bytes]:
    """The picture on white and mirrored, without loss, as CLIP_benchmark's export writes it; it reads no transparency."""
    pixels = images.decode_rgb(data)
    for turned in (pixels, pixels[:, ::-1]):
        buffer = io.BytesIO()
        Image.fromarray(turned).save(buffer, "WEBP", lossless=True)
        yield buffer.getvalue()


def trained_twin(*, num_steps: int) -> Bundle:
    """The quickstart's SigLIP twin after a short training on the sample."""
    torch.manual_seed(0)
    config = model_config("siglip_quickstart")
    model, tokenizer, preprocess = HyperClip(config), Tokenizer(), PreprocessConfig(image_size=config.image.image_size)
    rows = read_sample().select(["image", "caption"]).to_pylist()
    pixels = np.stack(
        [normalize(centre_square(images.decode_rgb(row["image"]), preprocess.image_size), preprocess) for row in rows]
    )
    captions = [row["caption"] for row in rows]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        chosen = rng.choice(len(rows), size=128, replace=False)
        texts = [captions[number] for number in chosen]
        positive = torch.tensor([[one == other for other in texts] for one in texts])
        loss = siglip_loss(
            model.encode_image(torch.from_numpy(pixels[chosen])),
            model.encode_text(tokenizer(texts)),
            logit_scale=model.logit_scale,
            logit_bias=model.logit_bias,
            positive=positive,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.requires_grad_(False).eval()
    return Bundle(model=model, tokenizer=tokenizer, preprocess=preprocess, templates=("{}",), metrics={}, digest="d" * 64)


class PeerModel(torch.nn.Module):
    """What CLIP_benchmark asks of a model."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self._model = bundle.model

    def encode_image(self, pictures: Tensor) -> Tensor:
        return self._model.encode_image(pictures)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self._model.encode_text(tokens)


def peer_transform(picture: Image.Image, *, config: PreprocessConfig) -> Tensor:
    """Our preprocessing of a picture that was decoded."""
    return torch.from_numpy(normalize(centre_square(np.asarray(picture), config.image_size), config))


def accuracy_at(output: Tensor, target: Tensor, topk: tuple[int, ...]) -> list[float]:
    """CLIP_benchmark's `accuracy`; its own turns an array of one element into a number, which NumPy 2.4 refuses."""
    found = output.topk(max(topk), 1).indices == target[:, None]
    return [found[:, :k].any(dim=1).float().mean().item() for k in topk]


def peer_top_1(folder: Path, bundle: Bundle, *, workers: int, batch: int) -> float:
    """As `clip_benchmark eval` on a `wds/` set: clip_benchmark/cli.py, `run`."""
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics import zeroshot_classification

    zeroshot_classification.accuracy = accuracy_at
    transform = partial(peer_transform, config=bundle.preprocess)
    dataset: Any = build_dataset("wds/drawings", root=str(folder), transform=transform, split="test", download=True)
    loader = torch.utils.data.DataLoader(dataset.batched(batch), batch_size=None, shuffle=False, num_workers=workers)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        found = zeroshot_classification.evaluate(
            PeerModel(bundle), loader, bundle.tokenizer, dataset.classes, dataset.templates, device="cpu", amp=False
        )
    return float(found["acc1"])


def our_top_1(folder: Path, bundle: Bundle) -> float:
    config = EvaluationConfig(kinds=("all",), recall_at=(), num_shown=0)
    result = evaluate_zero_shot([bundle], webdataset_set(str(folder)), config, progress=lambda *_: None)
    return result.headline.accuracy["neutral"].mean


def main() -> int:
    arguments = benchmark_arguments("Zero-shot evaluation against CLIP_benchmark on the same folder with the same model.")
    bundle = trained_twin(num_steps=30 if arguments.quick else 80)  # also lets torchvision load, which CLIP_benchmark imports
    with tempfile.TemporaryDirectory(prefix="hyperclip-evaluation-") as temporary:
        folder = Path(temporary) / "drawings"
        num_pictures = write_set(folder, num_pictures=600 if arguments.quick else 10_000)
        top_1: dict[str, set[float]] = {"ours": set(), "peer": set()}

        def timed(side: str, work: Callable[[], float]) -> Callable[[], float]:
            return lambda: num_pictures / seconds(lambda: top_1[side].add(work()))

        settings = [(2, 64)] if arguments.quick else [(workers, batch) for workers in PEER_WORKERS for batch in PEER_BATCHES]
        peer_top_1(folder, bundle, workers=0, batch=64)  # imports, and the files into the page cache
        tried = {}
        for workers, batch in settings:
            tried[workers, batch] = timed("peer", partial(peer_top_1, folder, bundle, workers=workers, batch=batch))()
            print(f"  CLIP_benchmark, {workers} workers, batch {batch}: {tried[workers, batch]:.0f}/s", file=sys.stderr)
        workers, batch = max(tried, key=lambda setting: tried[setting])
        speeds = interleaved(
            {
                "ours": timed("ours", partial(our_top_1, folder, bundle)),
                "peer": timed("peer", partial(peer_top_1, folder, bundle, workers=workers, batch=batch)),
            },
            rounds=3 if arguments.quick else 5,
        )
    ours, peer = spread(speeds["ours"]), spread(speeds["peer"])
    difference = max(abs(one - other) for one in top_1["ours"] for other in top_1["peer"])
    return benchmark_result(
        "evaluation",
        ratio=ours["median"] / peer["median"],
        goal=(">=", 1.5),
        measures={
            "top_1_difference": measure(difference, goal=("<=", SAME_TOP_1)),
            "top_1": measure(max(top_1["ours"])),
            "pictures_per_second": measure(ours["median"], unit="1/s"),
            "clip_benchmark_pictures_per_second": measure(peer["median"], unit="1/s"),
        },
        spread={"ours": ours, "clip_benchmark": peer},
        sizes={"pictures": num_pictures, "templates": len(TEMPLATES), "model": "siglip_quickstart", "image_size": 48},
        peer_settings={"num_workers": workers, "batch_size": batch, "amp": False},
        **environment("torch", "clip-benchmark", "webdataset", "pillow"),
    )


if __name__ == "__main__":
    sys.exit(main())
