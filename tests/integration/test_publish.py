"""Publishing a model, and moving the champion, with the process killed between any two writes of MLflow's database."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
import sqlalchemy
from typer.testing import CliRunner

from infra.errors import BadInputError
from infra.model_registry import CANDIDATE, CHAMPION, ModelRegistry, ModelVersion
from infra.tracking import Tracker
from pipeline.cli import app
from serving.model_source import find_bundle
from tests.evaluation_results import family_result, zero_shot_result
from tests.unit.model_helpers import make_bundle
from training.bundle import load_bundle
from training.evaluation.arms import Arm
from training.evaluation.result import ZeroShotResult
from training.publish import PromotionDecision, decide, publish

pytestmark = pytest.mark.integration
QUICKSTART = Path(__file__).parents[2] / "pipeline" / "configs" / "quickstart.yaml"

TASKS = "a" * 64


class Killed(BaseException):
    """Passes every `except Exception`, as SIGKILL would."""


@contextmanager
def killed_at_write(number: int) -> Iterator[Callable[[], int]]:
    """Let this many transactions that write be committed, and none after them; gives a function that counts them."""
    writing: set[int] = set()
    committed = 0

    def before_execute(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            writing.add(id(connection))

    def before_commit(connection: Any) -> None:
        nonlocal committed
        if id(connection) in writing:
            writing.discard(id(connection))
            if committed >= number:
                connection.connection.dbapi_connection.rollback()  # its locks end with a process
                raise Killed
            committed += 1

    def after_rollback(connection: Any) -> None:
        writing.discard(id(connection))

    engine = sqlalchemy.engine.Engine
    sqlalchemy.event.listen(engine, "before_cursor_execute", before_execute)
    sqlalchemy.event.listen(engine, "commit", before_commit)
    sqlalchemy.event.listen(engine, "rollback", after_rollback)
    try:
        yield lambda: committed
    finally:
        sqlalchemy.event.remove(engine, "before_cursor_execute", before_execute)
        sqlalchemy.event.remove(engine, "commit", before_commit)
        sqlalchemy.event.remove(engine, "rollback", after_rollback)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models: folder by digest."""
    root = tmp_path_factory.mktemp("bundles")
    return {make_bundle(root / str(seed), seed=seed).digest: root / str(seed) for seed in (0, 1)}


def aliases(tracker: Tracker, name: str) -> dict[str, str]:
    found = mlflow.MlflowClient(tracking_uri=tracker.config.uri).get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}


def result_of(digest: str, accuracy: float, *, tasks: str = TASKS) -> ZeroShotResult:
    means: dict[Arm, float] = {"specialized": accuracy, "neutral": 0.3, "swapped": 0.2}
    return zero_shot_result((family_result(means),), digest=digest, tasks=tasks)


def killed(command: Callable[[], object], *, writes: int) -> bool:
    """Whether the command was killed after so many writes; else it came to its end."""
    try:
        with killed_at_write(writes):
            command()
    except Killed:
        while mlflow.active_run():  # a new process would know of none
            mlflow.end_run()
        return True
    return False


def test_one_kill_anywhere_and_a_second_call_register_a_model_once(
    tracker: Tracker, bundles: dict[str, Path], tmp_path: Path
) -> None:
    digest, client = next(iter(bundles)), mlflow.MlflowClient(tracking_uri=tracker.config.uri)
    for writes in range(100):
        name, run_id = f"once-{writes}", tracker.start_run("register")

        def call(name: str = name, run_id: str = run_id) -> tuple[ModelVersion, PromotionDecision]:
            return publish(tracker, run_id=run_id, bundle_folder=bundles[digest], name=name, result=result_of(digest, 0.5))

        if not killed(call, writes=writes):
            break
        version, decision = call()
        assert [int(found.version) for found in client.search_model_versions(f"name = '{name}'")] == [1], writes
        assert aliases(tracker, name) == {CANDIDATE: "1", CHAMPION: "1"}, writes
        assert client.get_registered_model(name).tags == {"champions": "1"}, writes
        assert decision.promoted, writes
        assert ModelRegistry(tracker).version(name, "1").tags == {
            "bundle_digest": digest,
            "evaluation_tasks": TASKS,
            "accuracy_10_way.specialized": "0.5000",
            "accuracy_10_way.neutral": "0.3000",
            "accuracy_10_way.swapped": "0.2000",
        }, writes
        (logged,) = client.search_logged_models([tracker.experiment_id], filter_string=f"source_run_id = '{run_id}'")
        assert str(logged.status) == "READY", writes
        folder = find_bundle(ModelRegistry(tracker).download_model(version, tmp_path / str(writes)))
        assert load_bundle(folder).digest == digest, writes
    assert writes > 10  # or the kills did not reach the writes


def test_a_better_model_is_registered_once_however_often_publishing_is_killed(
    tracker: Tracker, bundles: dict[str, Path]
) -> None:
    """Killed again and again, each time one write later, on what the attempts before left; and over a champion."""
    client = mlflow.MlflowClient(tracking_uri=tracker.config.uri)
    for (digest, folder), accuracy in zip(bundles.items(), (0.5, 0.6), strict=True):
        run_id, writes = tracker.start_run("register"), 0

        def call(digest: str = digest, folder: Path = folder, accuracy: float = accuracy, run_id: str = run_id) -> object:
            return publish(tracker, run_id=run_id, bundle_folder=folder, name="killed", result=result_of(digest, accuracy))

        while killed(call, writes=writes):
            writes += 1
        assert writes > 3
    versions = sorted(client.search_model_versions("name = 'killed'"), key=lambda version: int(version.version))
    assert [version.tags["bundle_digest"] for version in versions] == list(bundles)
    assert [version.tags["accuracy_10_way.specialized"] for version in versions] == ["0.5000", "0.6000"]
    assert aliases(tracker, "killed") == {CANDIDATE: "2", CHAMPION: "2"}
    assert ModelRegistry(tracker).rollback("killed").version == "1"


@pytest.fixture
def versions(tracker: Tracker, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name of a model with four versions, three of which have been champion in turn."""
    client, name = mlflow.MlflowClient(tracking_uri=tracker.config.uri), request.node.name
    client.create_registered_model(name)
    for _ in range(4):
        client.create_model_version(name, source=str(tmp_path))
    for version in ("1", "2", "3"):
        ModelRegistry(tracker).promote(name, version)
    return str(name)


@pytest.mark.parametrize("writes", [0, 1])
def test_a_promotion_killed_between_its_writes_and_run_again_is_one_promotion(
    tracker: Tracker, versions: str, writes: int
) -> None:
    assert killed(lambda: ModelRegistry(tracker).promote(versions, "4"), writes=writes)
    assert ModelRegistry(tracker).promote(versions, "4").version == "4"
    assert [ModelRegistry(tracker).rollback(versions).version for _ in range(3)] == ["3", "2", "1"]


@pytest.mark.parametrize("writes", [0, 1])
def test_a_rollback_killed_between_its_writes_and_run_again_goes_back_once(
    tracker: Tracker, versions: str, writes: int
) -> None:
    assert killed(lambda: ModelRegistry(tracker).rollback(versions), writes=writes)
    assert ModelRegistry(tracker).version(versions, CHAMPION).version == "3"
    assert ModelRegistry(tracker).rollback(versions).version == "2"
    assert ModelRegistry(tracker).rollback(versions).version == "1"


def test_a_champion_set_by_hand_in_mlflow_is_remembered(tracker: Tracker, versions: str) -> None:
    mlflow.MlflowClient(tracking_uri=tracker.config.uri).set_registered_model_alias(versions, CHAMPION, "1")
    ModelRegistry(tracker).promote(versions, "4")
    assert [ModelRegistry(tracker).rollback(versions).version for _ in range(3)] == ["1", "3", "2"]


def test_commands_find_mlflow_through_the_configuration_of_a_run(
    tracker: Tracker, versions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = tmp_path / "my-run.yaml"
    text = QUICKSTART.read_text()
    config.write_text(f"tracking: {tracker.config.model_dump_json()}\n{text}")
    told = CliRunner().invoke(app, ["promote", versions, "4", "--config", str(config)])
    assert told.output.startswith(f"{versions} version 4 is the champion.  Running services check it first")
    told = CliRunner().invoke(app, ["rollback", versions, "--config", str(config)])
    assert told.output.startswith(f"{versions} version 3 is the champion again.")
    refused = CliRunner().invoke(
        app, ["export", "--model", "models:/none@champion", "--output", "x", "--labels", "a", "--config", str(config)]
    )
    assert f"there is no model 'none' in {tracker.config.uri}; models: " in str(refused.exception)
    refused = CliRunner().invoke(app, ["export", "--output", "x", "--labels", "a", "--config", str(config)])
    assert "there is no model 'hyperclip-quickstart'" in str(refused.exception)  # not the shipped one: the run is named
    config.write_text(f"{text}\n".replace("runs/quickstart", f"{tmp_path}/other"))  # MLflow lies in the workspace
    refused = CliRunner().invoke(app, ["rollback", versions, "--config", str(config)])
    assert f"there is no MLflow database at sqlite:///{tmp_path}/other/mlflow/mlflow.db" in str(refused.exception)


# ---- which model becomes the champion --------------------------------------------------------------------------------


def version_with(version: str, accuracy: str | None = None, *, tasks: str = TASKS) -> ModelVersion:
    tags = {} if accuracy is None else {"evaluation_tasks": tasks, "accuracy_10_way.specialized": accuracy}
    return ModelVersion(name="m", version=version, run_id="r", source_uri="s", tags=tags)


@pytest.mark.parametrize(
    ("champion", "outcome", "promoted", "says"),
    [
        (None, "first", True, "no champion"),
        (version_with("2", "0.9"), "already", True, "already"),
        (version_with("1", "0.4999"), "better", True, "50.0% against 50.0% of the champion, version 1"),
        (version_with("1", "0.5000"), "not_better", False, "stays candidate"),
        (version_with("1", "0.7"), "not_better", False, "50.0% against 70.0%"),
        (version_with("1", "0.1", tasks="b" * 64), "other_tasks", False, "hyperclip promote m 2"),
        (version_with("1"), "other_tasks", False, "other pictures or tasks"),
    ],
)
def test_the_champion_changes_only_for_a_better_model_on_the_same_tasks(
    champion: ModelVersion | None, outcome: str, promoted: bool, says: str
) -> None:
    decision = decide(version_with("2", "0.5"), result_of("d", 0.5), champion=champion)
    assert (decision.outcome, decision.promoted) == (outcome, promoted)
    assert says in decision.reason


def test_a_worse_model_becomes_candidate_and_leaves_the_champion(tracker: Tracker, bundles: dict[str, Path]) -> None:
    for (digest, folder), accuracy in zip(bundles.items(), (0.6, 0.5), strict=True):
        run_id = tracker.start_run("register")
        version, decision = publish(
            tracker, run_id=run_id, bundle_folder=folder, name="worse", result=result_of(digest, accuracy)
        )
    assert (version.version, decision.outcome) == ("2", "not_better")
    assert aliases(tracker, "worse") == {CANDIDATE: "2", CHAMPION: "1"}


def test_the_evaluation_of_another_model_is_refused(tracker: Tracker, bundles: dict[str, Path]) -> None:
    first, second = bundles
    with pytest.raises(BadInputError, match="the evaluation is of"):
        publish(tracker, run_id="r", bundle_folder=bundles[first], name="mixed", result=result_of(second, 0.5))
    assert ModelRegistry(tracker).find_version("mixed", tags={"bundle_digest": first}) is None
