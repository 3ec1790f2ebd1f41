"""The report says what the records say, and what strangers wrote on the web stays text."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mlflow
import pytest
from rich.console import Console

from infra import storage
from infra.tracking import Tracker, TrackingConfig
from pipeline.config import RunConfig, load_run_config
from pipeline.report import verdict, write_report
from pipeline.runner import plan
from pipeline.shipped_step import ShippedAnswers
from pipeline.showcase import read_showcase, showcase_table
from pipeline.showcase_steps import ServedPrediction, ServedPredictions
from pipeline.steps import PlannedStep, StepRecord
from tests.evaluation_results import family_result, zero_shot_result
from tests.html_page import Page
from tests.unit.model_helpers import picture_bytes
from tests.unit.shard_helpers import sample, write_shards
from training.evaluation.arms import Arm
from training.evaluation.result import ShownPrediction, ZeroShotResult

pytestmark = pytest.mark.integration
QUICKSTART = Path(__file__).parents[2] / "pipeline" / "configs" / "quickstart.yaml"
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} & <b>'


class Written(NamedTuple):
    page: Page
    config: RunConfig
    records: dict[str, StepRecord]
    evaluation: ZeroShotResult
    run_id: str


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, new_tracking: Callable[[Path], TrackingConfig]) -> Written:
    """The report of a run whose steps left these records."""
    root = tmp_path_factory.mktemp("report")
    new_tracking(root / "w")
    config = load_run_config(
        QUICKSTART, (f"workspace={root}/w", "showcase={labels: [cat, dog], num_pictures: 2, beside_shipped: true}")
    )
    planned = plan(config)
    evaluation = leave_outputs(planned)
    records = {entry.step.name: record_of(entry) for entry in planned}
    before = mlflow.get_tracking_uri()
    tracker = Tracker(config.resolved_tracking)
    run_id = tracker.start_run("run")
    uri = write_report(config, planned, records, tracker, run_id)
    html = storage.read_bytes(uri).decode()
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/report.html") == html
    mlflow.set_tracking_uri(before)
    return Written(Page(html), config, records, evaluation, run_id)


def leave_outputs(planned: list[PlannedStep]) -> ZeroShotResult:
    uris = {entry.step.name: entry.output_uri for entry in planned}
    pictures = [sample(picture_bytes(20, 20, seed=number), number, caption=HOSTILE) for number in range(3)]
    write_shards(Path(uris["shard-evaluation"]), pictures, samples_per_shard=2, suffix="png")
    means: dict[Arm, float] = {"specialized": 0.4321, "neutral": 0.3333, "swapped": 0.25}
    families = tuple(family_result(means, num_names=num_names, half=0.03) for num_names in (10, 50))
    shown = (
        ShownPrediction(sample=0, truth=HOSTILE, predicted=HOSTILE, score=0.5),
        ShownPrediction(sample=2, truth="cat", predicted=HOSTILE, score=0.25),
    )
    evaluation = zero_shot_result(families, shown=shown)
    storage.write_atomic(f"{uris['evaluate']}/evaluation.json", evaluation.model_dump_json())
    lines = [f'{{"step": {step}, "loss": {3 - step}, "delta_rms": 0.1, "delta_variation": 0.2}}\n' for step in range(3)]
    storage.write_atomic(f"{uris['train']}/metrics.jsonl", "".join(lines))
    served = ServedPredictions(
        task_id="task",
        model_version="1",
        labels=("cat", HOSTILE),
        predictions=(
            ServedPrediction(sample=0, truth="cat", predicted="cat", score=0.9),
            ServedPrediction(sample=1, truth=HOSTILE, predicted="cat", score=0.6),
        ),
    )
    storage.write_atomic(f"{uris['serve']}/predictions.json", served.model_dump_json())
    answers = ShippedAnswers(
        model_name="small",
        bundle_digest="b" * 64,
        predictions=(
            ServedPrediction(sample=0, truth="cat", predicted=HOSTILE, score=0.3),
            ServedPrediction(sample=1, truth=HOSTILE, predicted=HOSTILE, score=0.7),
        ),
    )
    storage.write_atomic(f"{uris['shipped']}/answers.json", answers.model_dump_json())
    theirs = zero_shot_result((family_result({"specialized": 0.6}, half=0.03),))
    storage.write_atomic(f"{uris['shipped']}/evaluation.json", theirs.model_dump_json())
    return evaluation


def record_of(entry: PlannedStep) -> StepRecord:
    kind = entry.step.name.partition("-")[0]
    facts = {
        "download": {"requested": 1513, "downloaded": 1498, "failed": {"http_404": 10, HOSTILE: 5}},
        "curate": {"seen": 1498, "kept": 1491, "dropped": {"duplicate_exact": 7}},
        "shard": {"samples": 1491, "shards": 3},
    }.get(kind, {})
    return StepRecord(step=entry.step.name, summary=f"{HOSTILE} {entry.step.name}", facts=facts, seconds=1.5)


def test_what_strangers_wrote_stays_text(written: Written) -> None:
    tags = written.page.tags
    assert "script" not in {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert {attributes["src"][:11] for tag, attributes in tags if tag == "img" and attributes["src"]} == {"data:image/"}
    assert [attributes["alt"] for tag, attributes in tags if tag == "img"].count(HOSTILE) == 2
    assert "onerror" not in {name for _, attributes in tags for name in attributes}
    assert HOSTILE in written.page.text  # shown as it was written, and not run as a template either
    assert "49" not in re.findall(r"onerror=alert\(2\)> (\d+)", written.page.text)


def test_the_accuracies_are_those_of_the_evaluation(written: Written) -> None:
    rows = written.page.table("names in a task")
    assert rows[0] == [
        "10 names, random",
        "10.0%",
        "43.2% (40.2% to 46.2%)",
        "33.3% (30.3% to 36.3%)",
        "25.0% (22.0% to 28.0%)",
        "7",
        "1,201",
    ]
    assert [row[0] for row in rows] == ["10 names, random", "50 names, random"]
    assert f"{written.evaluation.num_pictures:,} held-out pictures of 374 concepts" in " ".join(written.page.text.split())


@pytest.mark.parametrize(
    ("means", "says"),
    [
        ((0.50, 0.45, 0.44), "With 10 names, random, specialization helps"),
        ((0.50, 0.45, 0.49), "not a gain of the names (50.0% specialized, 45.0% neutral, 49.0% swapped)"),
        ((0.50, 0.49, 0.20), "no gain from specialization can be told"),
        ((0.46, 0.47, 0.20), "no gain from specialization can be told"),
        ((0.40, 0.45, 0.20), "specialization does harm"),
    ],
)
def test_the_verdict_follows_from_the_intervals(means: tuple[float, float, float], says: str) -> None:
    specialized, neutral, swapped = means  # differences are known to 2 points
    assert says in verdict(family_result({"specialized": specialized, "neutral": neutral, "swapped": swapped}))


def test_without_other_names_the_verdict_says_that_the_control_is_missing() -> None:
    assert "the control is missing" in verdict(family_result({"specialized": 0.5, "neutral": 0.4}))


def test_the_verdict_of_every_task_size_stands_in_the_report(written: Written) -> None:
    text = " ".join(written.page.text.split())
    for result in written.evaluation.families:
        assert verdict(result) in text
    assert "so one seed" in text


def test_every_lost_sample_is_counted_the_commonest_reason_first(written: Written) -> None:
    assert written.page.table("reason") == [
        ["failed", "http_404", "10"],
        ["failed", HOSTILE, "5"],
        ["dropped", "duplicate_exact", "7"],
    ]
    assert "1,513 URLs → 1,498 downloaded → 1,491 kept → 1,491 samples in shards" in " ".join(written.page.text.split())


def test_every_step_is_there_with_its_summary(written: Written) -> None:
    rows = written.page.table("result")
    assert [row[0] for row in rows] == list(written.records)
    assert [row[1] for row in rows] == [record.summary for record in written.records.values()]


def test_the_shipped_model_stands_beside_the_trained_one_and_it_is_said_that_this_is_no_contest(written: Written) -> None:
    assert written.page.table("this run's model")[:2] == [
        ["cat", "✓ cat 90.0%", f"✗ {HOSTILE} 30.0%"],
        [HOSTILE, "✗ cat 60.0%", f"✓ {HOSTILE} 70.0%"],
    ]
    assert written.page.table("specialized, in the same tasks") == [
        ["10 names, random", "10.0%", "43.2% (40.2% to 46.2%)", "60.0% (57.0% to 63.0%)"],
        ["pictures above", "", "1 of 2", "1 of 2"],
    ]
    text = " ".join(written.page.text.split())
    assert "so this is no contest of methods" in text
    assert "has not seen the artist of these pictures (Fluent Emoji, flat style) either" in text
    assert "bundle bbbbbbbbbbbb" in text


def test_the_terminal_shows_both_answers_to_each_picture(written: Written) -> None:
    showcase = read_showcase({entry.step.name: entry.output_uri for entry in plan(written.config)})
    assert showcase is not None
    console = Console(width=1000, record=True, file=io.StringIO())
    console.print(showcase_table(showcase))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert " ".join(lines[0]) == "picture of this run's model shipped model"
    assert lines[1] == ["cat", "✓", "cat", "90%", "✗", *HOSTILE.split(), "30%"]


def test_the_service_and_the_run_are_named(written: Written) -> None:
    text = " ".join(written.page.text.split())
    assert "1 of 2 pictures right" in text
    assert written.run_id in text
    assert written.config.run_hash[:12] in text
    assert '"num_steps": 300' in text
