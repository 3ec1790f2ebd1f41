"""An evaluation as files: the plots and, last, `evaluation.json`."""

from pathlib import Path
from tempfile import TemporaryDirectory

from infra import artefacts, storage
from infra.tracking import Tracker
from training.evaluation.plots import evaluation_plots
from training.evaluation.result import ZeroShotResult

EVALUATION_NAME = "evaluation.json"
SCHEMA_VERSION = 2
ARTIFACT_FOLDER = "evaluation"


def write_result(result: ZeroShotResult, folder_uri: str) -> None:
    for name, picture in evaluation_plots(result).items():
        storage.write_atomic(storage.join(folder_uri, name), picture)
    storage.write_atomic(storage.join(folder_uri, EVALUATION_NAME), result.model_dump_json(indent=1))


def read_result(folder_uri: str) -> ZeroShotResult:
    """Raises:
    BadInputError: nothing is there, or a newer version of this project wrote it.
    CorruptArtefactError: it is none.
    """
    uri = storage.join(folder_uri, EVALUATION_NAME)
    artefacts.check_schema_version(uri, newest=SCHEMA_VERSION)
    return artefacts.read_model(uri, ZeroShotResult)


def log_result(result: ZeroShotResult, tracker: Tracker, run_id: str) -> None:
    """Add the files to an MLflow run; its metrics are `result.metrics`."""
    with TemporaryDirectory(prefix="hyperclip-evaluation-") as folder:
        write_result(result, folder)
        tracker.log_artifact(run_id, Path(folder), folder=ARTIFACT_FOLDER)
