"""What runs leave in a workspace, apart from MLflow's records: what one configuration made, and all that any did.

Step folders are known by their names, so that those of configurations nobody has any more are found too.
"""

import re

from infra import storage
from infra.errors import BadInputError
from pipeline.config import RunConfig
from pipeline.report import REPORT_NAME, report_uri
from pipeline.runner import RUNS, plan, state_uri
from pipeline.showcase_steps import TASKS
from pipeline.sweep_runs import SWEEPS

# what reads comes before what is read, so that whenever it is cut off no done step has lost its input
_STAGES = ("serve", "shipped", "export", "register", "evaluate", "train", "describe", "shard", "curate", "download", "import")
# after the stage the dataset, or the evaluation set of a sweep
_STEP_FOLDER = re.compile(rf"({'|'.join(_STAGES)})(-[a-z0-9-]+)?-[0-9a-f]{{12}}")
_REPORT = re.compile(rf"[a-z0-9-]+-[0-9a-f]{{12}}-{re.escape(REPORT_NAME)}")


def made_by(config: RunConfig) -> list[str]:
    """What the steps of a configuration made, done or begun, what reads before what is read; then its report, and which MLflow
    runs it goes on in: a run made anew is a new one there.

    Raises:
        BadInputError: an input of the run is not there any more, so its addresses are not known.
    """
    try:
        planned = plan(config)
    except BadInputError as error:
        raise BadInputError(f"{error}; so what was made of it cannot be told from the rest (--all removes both)") from error
    uris = [entry.output_uri for entry in reversed(planned)] + [report_uri(config), state_uri(config)]
    return [uri for uri in uris if storage.exists(uri)]


def made_by_any(workspace_uri: str) -> list[str]:
    """What any configuration made in a workspace: step folders, reports, comparisons of sweeps, and which MLflow runs they go
    on in; and the tasks of the service."""
    folders = [uri for uri in storage.list_folders(workspace_uri) if _STEP_FOLDER.fullmatch(_name(uri))]
    others = [uri for name in (RUNS, SWEEPS, TASKS) if storage.exists(uri := storage.join(workspace_uri, name))]
    return [*sorted(folders, key=_stage), *reports_in(workspace_uri), *others]


def reports_in(workspace_uri: str) -> list[str]:
    """The reports of runs."""
    return [uri for uri in storage.list_files(workspace_uri, suffix=REPORT_NAME) if _REPORT.fullmatch(_name(uri))]


def of_other_configurations(config: RunConfig) -> list[str]:
    """Step folders in the workspace that are no address of this configuration."""
    own = {entry.output_uri for entry in plan(config)}
    return [uri for uri in storage.list_folders(config.workspace_uri) if _STEP_FOLDER.fullmatch(_name(uri)) and uri not in own]


def _stage(step_folder: str) -> int:
    return _STAGES.index(_name(step_folder).partition("-")[0])


def _name(uri: str) -> str:
    return uri.rpartition("/")[2]
