"""How fast one process computes pictures of many tasks on a device, and what a task takes of a GPU's memory.

Shapes: B pictures, S side of a picture, P values of a task.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from serving.engines.image_encoder import EncodeItem, ImageEncoderEngine
from tests.benchmarks._serve_gpu_answers import decode, label_sets, pictures
from training.bundle import Bundle
from training.fold import fold_image_encoder
from training.model.image_encoder import ImageEncoder, ImageEncoderConfig, Kind
from training.per_image import PerImageEncoder
from training.specialize import SpecializedEncoder, specialize

ROUNDS = 3
Rates = dict[int, float]
"""Pictures a second by batch."""


@dataclass(frozen=True)
class Trunk:
    """An image encoder of random weights."""

    name: str
    image_size: int
    generates: tuple[Kind, ...] = ("norm",)

    @property
    def label(self) -> str:
        return "_".join([self.name, str(self.image_size), *self.generates])


@dataclass(frozen=True)
class TaskMemory:
    """Of one resident task, in bytes."""

    counted: float
    """What `resident_bytes` counts."""
    allocated: float
    """What it takes of the GPU's memory."""


def engine_rates(bundle: Bundle, batches: Sequence[int], *, num_tasks: int, seconds: float) -> Rates:
    """Of mixed tasks, from decoded pictures to answers: what a replica does in one forward pass."""
    engine = ImageEncoderEngine(bundle)
    tasks = [engine.ready(encoder) for encoder in _stored_encoders(bundle, num_tasks)]
    decoded = decode(engine, pictures(64))
    rates = {}
    for batch in batches:
        items = [EncodeItem(decoded[n % len(decoded)], tasks[n % num_tasks], tasks[n % num_tasks], 5) for n in range(batch)]
        rates[batch] = batch * _calls_per_s(lambda items=items: engine.run(items), seconds=seconds)
    return rates


def forward_rates(
    trunk: Trunk, device: torch.device, batches: Sequence[int], *, num_tasks: int, seconds: float
) -> dict[str, Rates]:
    """Of the forward pass alone, with everything on the device.

    `per_image`: parameters per picture, of several tasks, as serving has it; `per_image_last`: the same with the shared weights
    in channels last from the start; `one_task`: folded, for one task; `neutral`: the encoder as it is trained.
    """
    torch.manual_seed(0)
    config = ImageEncoderConfig(trunk=trunk.name, image_size=trunk.image_size, embed_dim=512, generates=trunk.generates)
    encoder = ImageEncoder(config).eval().requires_grad_(False).to(device)
    deltas = 0.01 * torch.randn(num_tasks, encoder.layout.num_values, device=device)
    forwards: dict[str, Callable[[Tensor], Tensor]] = {"neutral": encoder, "one_task": fold_image_encoder(encoder, deltas[0])}
    forwards["per_image"] = _mixed(PerImageEncoder(encoder), deltas)
    last = ImageEncoder(config).eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last)
    forwards["per_image_last"] = _mixed(PerImageEncoder(last), deltas)
    rates: dict[str, Rates] = {name: {} for name in forwards}
    for batch in batches:
        images = torch.randn(batch, 3, trunk.image_size, trunk.image_size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        for name, forward in forwards.items():
            with torch.inference_mode():
                calls = _calls_per_s(lambda forward=forward, images=images: forward(images), seconds=seconds)
            rates[name][batch] = batch * calls
    return rates


def memory_a_task(bundle: Bundle, *, num_tasks: int) -> TaskMemory:
    """Mean over so many tasks made ready on the GPU where the model is."""
    engine = ImageEncoderEngine(bundle)
    encoders = _stored_encoders(bundle, 32)
    before = torch.cuda.memory_allocated()
    tasks = [engine.ready(encoders[number % len(encoders)]) for number in range(num_tasks)]
    allocated = torch.cuda.memory_allocated() - before
    return TaskMemory(counted=sum(task.num_bytes for task in tasks) / num_tasks, allocated=allocated / num_tasks)


def _stored_encoders(bundle: Bundle, count: int) -> list[SpecializedEncoder]:
    """As they come out of the task store: on the CPU."""
    made = [specialize(bundle, names) for names in label_sets(count)]
    return [replace(one, delta=one.delta.cpu(), text_features=one.text_features.cpu()) for one in made]


def _mixed(encoder: PerImageEncoder, deltas: Tensor) -> Callable[[Tensor], Tensor]:
    """Each picture under the next task."""
    rows = [encoder.prepare(delta) for delta in deltas]
    return lambda images: encoder(images, torch.stack([rows[place % len(rows)] for place in range(len(images))]))


def _calls_per_s(work: Callable[[], object], *, seconds: float) -> float:
    """Median of a few rounds that take so many seconds together, warm; each call has ended before the next begins."""
    for _ in range(3):
        work()
    rates = []
    for _ in range(ROUNDS):
        _synchronize()
        started, calls = time.perf_counter(), 0
        while time.perf_counter() - started < seconds / ROUNDS:
            work()
            _synchronize()
            calls += 1
        rates.append(calls / (time.perf_counter() - started))
    return statistics.median(rates)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
