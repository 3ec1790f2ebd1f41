"""What a run is made of: steps whose output address is a hash of what goes in.

    {workspace}/{step}-{hash}/        everything the step made
    {workspace}/{step}-{hash}/step.json   written last: the step is done

The hash covers the step's configuration and the hashes of the steps it reads, so a changed setting gives a new address and
an unchanged one is found done.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from infra import artefacts, storage
from infra.config import StrictModel, content_hash
from infra.errors import CorruptArtefactError
from infra.tracking import Tracker
from pipeline.config import RunConfig

RECORD_NAME = "step.json"
STEP_VERSION = 2
"""Raise it when the same configuration would give another output."""

State = Literal["done", "begun", "to do", "unknown"]
Progress = Callable[[int, int, str], None]
"""Called with (done, total, note)."""


class StepRecord(StrictModel):
    """`step.json`."""

    schema_version: Literal[1] = 1
    step: str
    summary: str
    """One line for people."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """What later steps and the report read."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Folder in the workspace of each step it read or watched; records of older versions have none."""
    seconds: float
    """Of the attempt that ended it."""
    continued: str | None = None
    """Where that attempt went on, "at step 20 of 60"; None when it did everything."""


@dataclass(frozen=True)
class StepContext:
    """What a step may use while it runs."""

    config: RunConfig
    output_uri: str
    inputs: Mapping[str, str]
    """Output URI of each step this one reads."""
    facts: Mapping[str, Mapping[str, Any]]
    """Facts of each step this one reads."""
    tracker: Tracker
    run_id: str
    """MLflow run of this step."""
    progress: Progress


@dataclass(frozen=True)
class StepResult:
    summary: str
    facts: dict[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """For MLflow."""


@dataclass(frozen=True)
class Step:
    name: str
    title: str
    """What it does, for people."""
    settings: Any
    """JSON-able: the part of the configuration that decides its output."""
    reads: tuple[str, ...]
    work: Callable[[StepContext], StepResult]
    watches: tuple[str, ...] = ()
    """Steps it looks at without its output depending on them: they come first, and are no part of its address."""
    clean_start: bool = True
    """Whether what a killed attempt left is removed first; False where the step itself resumes from it."""
    so_far: Callable[[str], str | None] | None = None
    """Where the step would go on in this output folder, "at step 20 of 60"; None where it would begin anew."""
    params: Mapping[str, str] = field(default_factory=dict)
    """Of its MLflow run, so that runs can be compared by them."""
    on_cluster: bool = False
    """Whether Ray is connected before it runs."""
    check_done: Callable[[StepRecord], None] | None = None
    """Called with the record when the step is found done; raises when what it read is no longer what it was."""
    goes_on: Callable[[StepRecord], bool] | None = None
    """Whether a finished step has more to do in its folder by now; it is run again there then."""


@dataclass(frozen=True)
class PlannedStep:
    """A step with its address."""

    step: Step
    hash: str
    output_uri: str

    @property
    def record(self) -> StepRecord | None:
        """What it made, or None when it is not done."""
        uri = storage.join(self.output_uri, RECORD_NAME)
        found = artefacts.read_model(uri, StepRecord) if storage.exists(uri) else None
        return None if found and self.step.goes_on and self.step.goes_on(found) else found

    @property
    def begun(self) -> bool:
        return storage.exists(self.output_uri)

    @property
    def state(self) -> State:
        """Raises CorruptArtefactError when its record is damaged."""
        try:
            if self.record is not None:
                return "done"
            return "begun" if self.begun else "to do"
        except CorruptArtefactError:
            raise
        except (
            Exception
        ):  # the store cannot be reached from here, and each has errors of its own: a plan can be made all the same
            return "unknown"

    @property
    def so_far(self) -> str | None:
        """Where an attempt that was cut off got to; None when the next one begins anew."""
        return self.step.so_far(self.output_uri) if self.step.so_far else None


def plan_steps(steps: list[Step], workspace_uri: str) -> list[PlannedStep]:
    """Give each step its address; steps come after those they read."""
    hashes: dict[str, str] = {}
    planned = []
    for step in steps:
        inputs = {name: hashes[name] for name in step.reads}
        digest = content_hash({"version": STEP_VERSION, "step": step.name, "settings": step.settings, "inputs": inputs})
        hashes[step.name] = digest
        planned.append(PlannedStep(step, digest, storage.join(workspace_uri, f"{step.name}-{digest[:12]}")))
    return planned
