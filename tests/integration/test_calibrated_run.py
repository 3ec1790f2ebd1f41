"""A run calibrates "none of these" where it evaluates, and what it registers carries the calibration."""

from collections.abc import Callable
from pathlib import Path

import pytest

from infra import storage
from infra.model_registry import CANDIDATE, ModelRegistry
from infra.tracking import Tracker, TrackingConfig
from pipeline.config import load_run_config
from pipeline.model_steps import model_steps
from pipeline.steps import StepContext
from serving.config import ServingConfig
from serving.model_source import fetch, resolve
from tests.unit.model_helpers import make_bundle, picture_bytes
from tests.unit.shard_helpers import sample, write_shards
from training.bundle import load_bundle
from training.none_of_these import NONE_OF_THESE_NAME

pytestmark = pytest.mark.integration
QUICKSTART = Path(__file__).parents[2] / "pipeline" / "configs" / "quickstart.yaml"


@pytest.mark.parametrize(("num_names", "calibrated"), [(60, True), (20, False)])
def test_the_registered_model_is_calibrated_where_there_are_names_enough(
    tmp_path: Path, new_tracking: Callable[[Path], TrackingConfig], num_names: int, calibrated: bool
) -> None:
    new_tracking(tmp_path / "w")
    small = ("evaluation.num_tasks=2", "evaluation.ways=[2]", "evaluation.num_shown=0")
    config = load_run_config(QUICKSTART, (f"workspace={tmp_path}/w", *small))
    bundle = make_bundle(tmp_path / "train" / "bundle")
    pictures = [
        sample(picture_bytes(20, 20, seed=number), number, caption=f"thing {number % num_names}", group=f"topic {number % 2}/x")
        for number in range(2 * num_names)
    ]
    write_shards(tmp_path / "shards", pictures, samples_per_shard=50, suffix="png")
    tracker = Tracker(config.resolved_tracking)
    run_id = tracker.start_run("a run")
    outputs = {
        "train": str(tmp_path / "train"),
        "evaluate": str(tmp_path / "evaluate"),
        "shard-evaluation": str(tmp_path / "shards"),
    }
    steps = {step.name: step for step in model_steps(config)}
    for name in ("evaluate", "register"):
        result = steps[name].work(
            StepContext(
                config=config, output_uri=str(tmp_path / name), inputs=outputs, facts={}, tracker=tracker, run_id=run_id,
                progress=lambda done, total, note="": None,
            )
        )  # fmt: skip
        if name == "evaluate":
            assert ("none_of_these_ece" in result.metrics) == calibrated
            assert (result.facts["none_of_these"] is not None) == calibrated
    assert storage.exists(str(tmp_path / "train" / "bundle" / NONE_OF_THESE_NAME)) == calibrated
    assert ModelRegistry(tracker).version_of(config.name, CANDIDATE) is not None
    served = resolve(
        ServingConfig(
            tracking=config.resolved_tracking,
            model_name=config.name,
            task_store_uri=str(tmp_path),
            cache_path=tmp_path / "cache",
        )
    )
    loaded = load_bundle(fetch(served))
    assert loaded.digest == bundle.digest
    assert (loaded.none_of_these is not None) == calibrated
