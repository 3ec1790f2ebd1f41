"""Damaged raw shards and hostile pictures into curation: each is caught with a reason, and nothing else happens.

One download's worth of shards, most of them damaged, goes through the real curation on Ray: tars changed after they were
reported, tars made to mislead with a report that agrees, and whole tars with hostile pictures, among intact ones.  A damaged
shard must be named and left out as a whole, each of its samples with the reason `damaged_shard`; each hostile picture must have
one of the reasons that are right for it, or be a picture; intact shards must be kept.  A canary folder, to which the names in
the tars lead, and everything else beside the output must stay as it was, and no worker may grow.
"""

import hashlib
import logging
import os
import random
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.curation.curate import CurateConfig, curate
from data_prep.curation.dedup import DedupConfig
from data_prep.raw import OUTCOME_SCHEMA, DownloadReport, RawShard
from infra.cluster import ClusterConfig, connected
from tests.chaos import _damaged_tars as tars
from tests.chaos._hostile_pictures import KINDS, Outcome
from tests.result import chaos_arguments, chaos_result, environment, measure

NAME = "damaged_shards"
SAMPLES = 3
PICTURES_PER_SHARD = 20
MAX_PIXELS = 4_000_000
MAX_GROWTH_MIB = 256


class Built(NamedTuple):
    """A raw folder, and what curation must make of it."""

    damaged: dict[str, str]
    """Path of a tar -> kind of damage."""
    expected: dict[str, tuple[str, frozenset[Outcome]]]
    """uid -> kind, and the reasons that are right."""


class Struck(NamedTuple):
    kinds: Counter[str]
    problems: list[str]
    lost: int
    """Samples of intact shards that were not kept, or without a row."""
    growth_mib: float
    kept_odd: int
    """Odd but good pictures among the hostile ones."""


class Builder:
    """Writes raw shards, their report and their outcomes."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.shards: list[RawShard] = []
        self.rows: list[dict[str, object]] = []
        self.built = Built({}, {})

    def add(self, samples: list[tars.Sample], uids: list[str], lies: bytes | None, reported: bytes) -> str:
        path = f"shards/{len(self.shards) // 1000:05d}/{len(self.shards):05d}.tar"
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if lies is not None:
            target.write_bytes(lies)
        digest = hashlib.sha256(reported).hexdigest()
        self.shards.append(RawShard(path=path, samples=len(samples), bytes=len(reported), sha256=digest))
        first = len(self.rows)
        self.rows += [
            {"row": first + place, "uid": uid, "state": "downloaded", "shard": path} for place, uid in enumerate(uids)
        ]
        return path

    def tar(self, kind: str | None, damage: tars.Damage | None, *, report_agrees: bool) -> None:
        """A shard of good samples, damaged or not."""
        name = f"{kind or 'intact'}-{len(self.shards)}"
        found = tars.samples(len(self.rows), SAMPLES, name)
        whole = tars.plain(found)
        lies = damage(found, self.rng) if damage else whole
        uids = [f"{name}/{place}" for place in range(SAMPLES)]
        path = self.add(found, uids, lies, lies if report_agrees and lies is not None else whole)
        if kind:
            self.built.damaged[path] = kind
        reasons: frozenset[Outcome] = frozenset(["damaged_shard" if kind else None])
        self.built.expected.update(dict.fromkeys(uids, (kind or "intact", reasons)))

    def pictures(self, kinds: list[str]) -> None:
        """An intact shard of hostile pictures."""
        first, found = len(self.rows), []
        for place, kind in enumerate(kinds):
            make, reasons = KINDS[kind]
            sample = tars.samples(first + place, 1, f"{kind}-{first + place}")[0]
            found.append(tars.Sample(f"{place:05d}", make(first + place, self.rng), sample.record))
            self.built.expected[f"{kind}-{first + place}/0"] = (kind, reasons)
        whole = tars.plain(found)
        self.add(found, [f"{kind}-{first + place}/0" for place, kind in enumerate(kinds)], whole, whole)

    def finish(self) -> Built:
        outcomes = self.folder / "outcomes"
        outcomes.mkdir()
        pq.write_table(pa.Table.from_pylist(self.rows, schema=OUTCOME_SCHEMA), outcomes / "00000.parquet")
        report = DownloadReport(
            requested=len(self.rows), downloaded=len(self.rows), failed={}, bytes=0, seconds=0, shards=self.shards
        )
        (self.folder / "download.json").write_text(report.model_dump_json())
        return self.built


class PeakMemory(threading.Thread):
    """Largest peak of any worker of Ray on this machine that is a descendant of ours, MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._ended = 0.0, threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.2):
            self.look()

    def look(self) -> None:
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
                worker = b"ray::" in (status.parent / "cmdline").read_bytes() and _is_ours(int(status.parent.name))
            except OSError:
                continue  # it has ended
            if worker and "VmHWM:" in text:
                self.peak = max(self.peak, int(text.partition("VmHWM:")[2].split()[0]) / 1024)

    def end(self) -> float:
        self._ended.set()
        self.join()
        return self.peak


def _is_ours(process: int) -> bool:
    """Whether a process descends from this one; another Ray on this machine is none of ours."""
    while process > 1 and process != os.getpid():
        text = Path(f"/proc/{process}/status").read_text()
        process = int(text.partition("PPid:")[2].split()[0])
    return process == os.getpid()


def strike(*, count: int, seed: int) -> Struck:
    """Damage `count` tars and add a tenth as many hostile pictures, and as many intact tars.  Ray must be connected."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="hyperclip-damaged-") as temporary:
        folder = Path(temporary)
        canary = folder / "canary"
        canary.mkdir()
        built, kinds = _build(folder / "raw", str(canary), rng, count)
        settings = CurateConfig(max_damaged_share=1.0, max_pixels=MAX_PIXELS, dedup=DedupConfig(max_hamming_distance=None))
        calm = _calm(folder, rng, settings)
        before = _listing(folder)
        memory = PeakMemory()
        memory.start()
        report = curate(
            settings, raw_uri=str(folder / "raw"), output_uri=str(folder / "curated"), progress=lambda done, total: None
        )
        peak = memory.end()
        problems = [f"written outside the target: {name}" for name in _changed(before, _listing(folder))]
        rows = pq.read_table(folder / "curated/keep.parquet").to_pylist()
        problems += [
            f"{kind}: {path} was not named as damaged"
            for path, kind in built.damaged.items()
            if path not in report.damaged_shards
        ]
        problems += [f"{path} is intact, but {why}" for path, why in report.damaged_shards.items() if path not in built.damaged]
        reasons = {row["uid"]: row["reason"] for row in rows}
        lost = 0
        for uid, (kind, right) in built.expected.items():
            if uid not in reasons or (kind == "intact" and reasons[uid] is not None):
                lost += 1
            elif reasons[uid] not in right:
                problems.append(f"{kind}: {uid} has the reason {reasons[uid]}, not one of {sorted(map(str, right))}")
        kept_odd = sum(reasons.get(uid) is None for uid, (kind, _) in built.expected.items() if kind in KINDS)
    return Struck(kinds, problems, lost, peak - calm, kept_odd)


def _build(folder: Path, canary: str, rng: random.Random, count: int) -> tuple[Built, Counter[str]]:
    builder, kinds = Builder(folder, rng), Counter[str]()
    damages = [(function.__name__, function, False) for function in tars.CHANGED]
    damages += [(name, function, True) for name, function in tars.made(canary).items()]
    names = list(KINDS)
    for number in range(count):
        name, damage, agrees = damages[number % len(damages)]
        builder.tar(name, damage, report_agrees=agrees)
        kinds[name] += 1
        if number % 10 == 0:
            builder.tar(None, None, report_agrees=True)
    hostile = [names[number % len(names)] for number in range(max(count // 10, len(names)))]
    kinds.update(hostile)
    for start in range(0, len(hostile), PICTURES_PER_SHARD):
        builder.pictures(hostile[start : start + PICTURES_PER_SHARD])
    return builder.finish(), kinds


def _calm(folder: Path, rng: random.Random, settings: CurateConfig) -> float:
    """Peak of a worker that looks at intact shards only: libraries are loaded then."""
    builder = Builder(folder / "calm-raw", rng)
    for _ in range(8):
        builder.tar(None, None, report_agrees=True)
    builder.finish()
    memory = PeakMemory()
    memory.start()
    curate(settings, raw_uri=str(folder / "calm-raw"), output_uri=str(folder / "calm"), progress=lambda done, total: None)
    memory.look()
    return memory.end()


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything beside the output, and the folder that relative names would lead to."""
    found = [path for path in folder.rglob("*") if path.relative_to(folder).parts[0] != "curated"]
    found += [path for path in Path.cwd().iterdir() if path.is_file()]
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found if path.is_file() or path.is_symlink()
    }


def _changed(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def main() -> int:
    arguments = chaos_arguments((__doc__ or NAME).splitlines()[0], count=10_000, quick_count=150)
    logging.disable(logging.WARNING)
    with connected(ClusterConfig(num_cpus=2)):
        struck = strike(count=arguments.count, seed=arguments.seed)
    for problem in struck.problems[:50]:
        print(problem, file=sys.stderr)
    pictures = sum(count for kind, count in struck.kinds.items() if kind in KINDS)
    return chaos_result(
        NAME,
        injected=struck.kinds.total(),
        lost=struck.lost,
        failed=len(struck.problems),
        measures={
            "damaged_tars": measure(struck.kinds.total() - pictures),
            "hostile_pictures": measure(pictures),
            "odd_but_good_pictures_kept": measure(struck.kept_odd),
            "caught_with_a_reason": measure(struck.kinds.total() - len(struck.problems), goal=(">=", struck.kinds.total())),
            "worker_growth": measure(struck.growth_mib, goal=("<=", MAX_GROWTH_MIB), unit="MiB"),
        },
        kinds=struck.kinds,
        problems=struck.problems[:50],
        seed=arguments.seed,
        **environment("ray", "pillow", "simplejpeg", "pyarrow"),
    )


if __name__ == "__main__":
    sys.exit(main())
