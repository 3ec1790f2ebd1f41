"""Loader workers that are killed: training hears of it, at whatever moment that was."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from torch.utils.data import get_worker_info

from data_prep.manifest import read_manifest
from tests.training_runs import small_config, write_shard
from training.data import TrainingBatches
from training.health import StoppedError
from training.shard_reader import ShardReader

GOOD_BATCHES = 2


class FatalReader(ShardReader):
    """Kills the worker that uses it as the out-of-memory killer would, at the moment it asks whether it is still needed."""

    _batches = 0

    def prefetch(self, samples: np.ndarray) -> None:
        super().prefetch(samples)
        self._batches += 1
        if self._batches > GOOD_BATCHES:
            assert get_worker_info() is not None, "this would kill the test"
            sys.setprofile(_kill_in_is_set)


def _kill_in_is_set(frame: FrameType, event: str, argument: Any) -> None:
    # a call into C: what the standard library's event locks is locked by then
    if frame.f_code.co_name == "is_set" and event in ("c_call", "return"):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_killed_while_it_asks_whether_to_end_fails_training(num_workers: int, tmp_path: Path) -> None:
    shards = str(write_shard(tmp_path / "shards"))
    reader = FatalReader(shards, read_manifest(shards))
    config = small_config({"loader_workers": num_workers})
    samples = TrainingBatches(reader, config, rank=0, world_size=1).starting_at(0)
    with pytest.raises(StoppedError, match=rf"a loader worker ended.*loader_workers={num_workers}"):
        for _ in range(num_workers * GOOD_BATCHES + 20):
            next(samples)
    del samples  # ends the other workers
