"""Checkpoints damaged in every way that disks, killed writers and people find: each is refused by name.

Promise: `load_checkpoint` refuses each with a reason that names the file, and the newest good checkpoint before it loads.

python -m tests.chaos.damaged_checkpoints [--quick | --count N] [--seed S]
"""

import json
import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from infra.config import content_hash
from infra.errors import BadInputError, CorruptArtefactError
from tests.result import chaos_arguments, chaos_result, environment, measure
from training.checkpoint import (
    FILES,
    MARKER,
    TrainState,
    checkpoint_uri,
    describe_file,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from training.engine import FullState
from training.model.hyperclip import HyperClip
from training.model.registry import model_config

GOOD, OTHER, DAMAGED = 10, 20, 30
"""Steps of the last good checkpoint, of one to swap files with, and of the one that is damaged."""

Damage = Callable[[Path, Path, random.Random], str]
"""Called with the checkpoint, another one and a generator; returns the name that the reason must hold."""


def flip_bit(folder: Path, _: Path, rng: random.Random) -> str:
    name = rng.choice(sorted(FILES))
    data = bytearray((folder / name).read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    (folder / name).write_bytes(data)
    return name


def flip_bit_of_marker(folder: Path, _: Path, rng: random.Random) -> str:
    data = bytearray((folder / MARKER).read_bytes())
    # in a digest: a flipped space is no damage, and a flipped version number is a case of its own
    place = data.index(b'"sha256"') + len('"sha256":"') + 1 + rng.randrange(60)
    data[place] ^= 1 << rng.randrange(8)
    (folder / MARKER).write_bytes(data)
    return MARKER


def truncate(folder: Path, _: Path, rng: random.Random) -> str:
    name = rng.choice(sorted({*FILES, MARKER}))
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: rng.randrange(len(data))])
    return name


def lengthen(folder: Path, _: Path, rng: random.Random) -> str:
    name = rng.choice(sorted(FILES))
    with (folder / name).open("ab") as file:
        file.write(rng.randbytes(1 + rng.randrange(64)))
    return name


def remove_file(folder: Path, _: Path, rng: random.Random) -> str:
    name = rng.choice(sorted({*FILES, MARKER}))
    (folder / name).unlink()
    return name


def swap_file(folder: Path, other: Path, rng: random.Random) -> str:
    name = rng.choice(sorted(FILES - {"buffers.safetensors"}))
    shutil.copyfile(other / name, folder / name)
    return name


def swap_marker(folder: Path, other: Path, _: random.Random) -> str:
    shutil.copyfile(other / MARKER, folder / MARKER)
    return "safetensors"  # the first file that is not what the marker says


def swap_everything(folder: Path, other: Path, _: random.Random) -> str:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    return "state.json"


def zero_pages(folder: Path, _: Path, rng: random.Random) -> str:
    """What some file systems leave of data that was not on disk when the power went."""
    name = rng.choice(["parameters.safetensors", "moments.safetensors"])
    data = bytearray((folder / name).read_bytes())
    start = rng.randrange(0, len(data) - 512, 512)
    while not any(data[start : start + 512]):
        start = 0
    data[start : start + 512] = bytes(512)
    (folder / name).write_bytes(data)
    return name


def edit_state(folder: Path, _: Path, rng: random.Random) -> str:
    state = json.loads((folder / "state.json").read_text())
    field = rng.choice(["step", "next_batch", "samples_seen", "seed"])
    (folder / "state.json").write_text(json.dumps(state | {field: state[field] + 1}, indent=1))
    return "state.json"


def garbage_marker(folder: Path, _: Path, rng: random.Random) -> str:
    (folder / MARKER).write_bytes(rng.choice([b"", b"{}", b"null", b"[]", b'{"schema_version": 1}', rng.randbytes(200)]))
    return MARKER


def marker_of_fewer_files(folder: Path, _: Path, rng: random.Random) -> str:
    marker = json.loads((folder / MARKER).read_text())
    del marker["files"][rng.choice(sorted(FILES))]
    (folder / MARKER).write_text(json.dumps(marker | {"digest": content_hash(marker["files"])}))
    return MARKER


def values_not_finite(folder: Path, _: Path, rng: random.Random) -> str:
    """With hashes that hold: a bad step was saved."""
    name = "parameters.safetensors"
    parameters = load_file(folder / name)
    chosen = parameters[rng.choice(sorted(parameters))]
    chosen.view(-1)[rng.randrange(chosen.numel())] = rng.choice([float("nan"), float("inf")])
    save_file(parameters, folder / f"new-{name}")
    (folder / f"new-{name}").replace(folder / name)
    seal(folder, name)
    return name


def not_safetensors(folder: Path, _: Path, rng: random.Random) -> str:
    """With hashes that hold: another writer."""
    name = "moments.safetensors"
    (folder / name).write_bytes(rng.randbytes(500))
    seal(folder, name)
    return folder.name


def newer_schema(folder: Path, _: Path, rng: random.Random) -> str:
    marker = json.loads((folder / MARKER).read_text())
    (folder / MARKER).write_text(json.dumps(marker | {"schema_version": 2 + rng.randrange(5)}))
    return MARKER


def seal(folder: Path, name: str) -> None:
    """Make the marker agree with a file that was changed."""
    marker = json.loads((folder / MARKER).read_text())
    marker["files"][name] = describe_file(folder / name).model_dump()
    (folder / MARKER).write_text(json.dumps(marker | {"digest": content_hash(marker["files"])}))


DAMAGES: tuple[Damage, ...] = (
    flip_bit,
    truncate,
    remove_file,
    swap_file,
    flip_bit_of_marker,
    edit_state,
    garbage_marker,
    newer_schema,
    lengthen,
    swap_everything,
    values_not_finite,
    zero_pages,
    swap_marker,
    marker_of_fewer_files,
    not_safetensors,
)


def write_checkpoint(folder: Path, step: int) -> Path:
    """A real model's state, different at each step."""
    torch.manual_seed(step)
    model = HyperClip(model_config("hyperclip_test"))
    parameters = {name: value.detach().clone() + step for name, value in model.named_parameters()}
    moments = {
        f"{key}.{name}": torch.randn_like(value).square()
        for key in ("exp_avg", "exp_avg_sq")
        for name, value in parameters.items()
    }
    full = FullState(parameters=parameters, moments=moments, buffers=dict(model.named_buffers()))
    state = TrainState(step=step, next_batch=step, samples_seen=step * 24, seed=0, config_hash="a")
    save_checkpoint(str(folder), state, full)
    return Path(checkpoint_uri(str(folder), step))


def problem_of(damage: Damage, pristine: Path, rng: random.Random) -> str | None:
    """What goes against the promise for one damaged checkpoint, or None."""
    with tempfile.TemporaryDirectory(prefix="hyperclip-damaged-") as temporary:
        folder = Path(temporary)
        for step in (GOOD, DAMAGED):
            shutil.copytree(checkpoint_uri(str(pristine), step), checkpoint_uri(str(folder), step))
        damaged = Path(checkpoint_uri(str(folder), DAMAGED))
        name = damage(damaged, Path(checkpoint_uri(str(pristine), OTHER)), rng)
        try:
            load_checkpoint(str(damaged))
        except (CorruptArtefactError, BadInputError) as error:
            if str(damaged) not in str(error) or name not in str(error):
                return f"the reason does not name {name}: {error}"
            if isinstance(error, BadInputError):  # of a newer version: it must stop the run, not be passed over
                return refused_by_resume(folder)
        except Exception as error:
            return f"not refused but failed: {error!r}"
        else:
            return f"loaded, with {name} damaged"
        newest = load_newest(str(folder), config_hash="a")
        if newest is None or newest[0].step != GOOD:
            return f"the last good checkpoint was not loaded, but {newest and newest[0]}"
        expected = load_checkpoint(checkpoint_uri(str(pristine), GOOD))[1].parameters
        if not all(torch.equal(value, newest[1].parameters[key]) for key, value in expected.items()):
            return "the last good checkpoint came back changed"
    return None


def refused_by_resume(folder: Path) -> str | None:
    try:
        load_newest(str(folder), config_hash="a")
    except BadInputError:
        shutil.rmtree(checkpoint_uri(str(folder), DAMAGED))
        newest = load_newest(str(folder), config_hash="a")
        return None if newest and newest[0].step == GOOD else "with the newer one set aside, the good one did not load"
    return "a newer version's checkpoint was passed over silently"


def strike(*, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Damage `count` checkpoints, each kind in turn; returns how many of each kind, and what went wrong."""
    rng = random.Random(seed)
    kinds: Counter[str] = Counter()
    problems = []
    with tempfile.TemporaryDirectory(prefix="hyperclip-damaged-") as temporary:
        for step in (GOOD, OTHER, DAMAGED):
            write_checkpoint(Path(temporary), step)
        for number in range(count):
            damage = DAMAGES[number % len(DAMAGES)]
            kinds[damage.__name__] += 1
            if problem := problem_of(damage, Path(temporary), rng):
                problems.append(f"{damage.__name__}: {problem}")
    return kinds, problems


def main() -> int:
    arguments = chaos_arguments(__doc__ or "", count=200, quick_count=30)
    logging.disable(logging.WARNING)  # each reason is checked; two hundred lines of them tell nobody anything
    kinds, problems = strike(count=arguments.count, seed=arguments.seed)
    for problem in problems:
        print(problem, file=sys.stderr)
    return chaos_result(
        "damaged_checkpoints",
        injected=kinds.total(),
        lost=0,
        failed=len(problems),
        measures={"refused_with_the_file_named": measure(kinds.total() - len(problems), goal=(">=", kinds.total()))},
        kinds=kinds,
        problems=problems,
        seed=arguments.seed,
        **environment("torch", "safetensors"),
    )


if __name__ == "__main__":
    sys.exit(main())
