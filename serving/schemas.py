"""Requests and answers of the HTTP interface.  Unknown keys are refused, numbers are not read from strings."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator

from infra.config import StrictModel
from training.none_of_these import NoneOfThese

TaskId = Annotated[str, Field(pattern="^[a-z2-7]{52}$", description="Base32 SHA-256 of what the task is.")]
Parameters = Literal["specialized", "neutral"]


class WireModel(StrictModel):
    """A `StrictModel` that converts nothing."""

    model_config = ConfigDict(strict=True)


class TaskRequest(WireModel):
    """`POST /v1/tasks`."""

    labels: tuple[str, ...] = Field(examples=[["cat", "dog", "horse"]])
    """Names of the classes, in the order of your choice."""
    templates: tuple[str, ...] | None = Field(default=None, examples=[["a photo of a {}"]])
    """Texts with one `{}` for the name; the model's own when absent."""
    pinned_version: str | None = None
    """Model version this task stays with, as text or as a whole number; it follows the champion when absent."""

    @field_validator("pinned_version", mode="before")
    @classmethod
    def _version_as_text(cls, version: object) -> object:
        return str(version) if type(version) is int and abs(version) < 10**9 else version


class TextRequest(WireModel):
    """`POST /v1/embed/text`."""

    texts: tuple[str, ...] = Field(examples=[["a photo of a cat"]])


class Timings(WireModel):
    """Where the time of a call went, in milliseconds."""

    total: float
    specialize: float | None = None
    """Text encoder and hypernetwork; absent when nothing had to be made."""


class TaskCreated(WireModel):
    """A task that is ready to classify."""

    task_id: TaskId
    specialization_id: str
    """Which encoder, made by which model: changes with the champion, while `task_id` stays."""
    model_version: str
    num_labels: int
    cached: bool
    """True when it was there already."""
    timings_ms: Timings


class TaskInfo(WireModel):
    """`GET /v1/tasks/{id}`."""

    task_id: TaskId
    specialization_id: str
    model_version: str
    labels: tuple[str, ...]
    templates: tuple[str, ...] | None
    pinned_version: str | None


class TaskSummary(WireModel):
    """One task in a list."""

    task_id: TaskId
    num_labels: int
    used_at: int
    """Seconds since 1970: its last use, to a day or to a tenth of the time after which unused tasks are removed."""


class TaskList(WireModel):
    """`GET /v1/tasks`."""

    tasks: tuple[TaskSummary, ...]
    num_labels: int
    """Of all tasks together."""
    max_tasks: int
    max_labels: int


class Prediction(WireModel):
    """One label for one picture."""

    label: str
    score: float
    """Softmax: how the labels share the picture."""
    match: float
    """Sigmoid: this label for itself, on a scale that depends on the model and on how many labels there are."""


class Problem(WireModel):
    """RFC 9457 problem details; the body of every error."""

    model_config = ConfigDict(extra="ignore")

    type: str
    title: str
    status: int
    detail: str


class ImageTimings(WireModel):
    """Where the time of one picture went, in milliseconds."""

    decode: float
    queue: float
    """Waiting for the batch to fill and the encoder to be free."""
    forward: float
    """The forward pass that it shared with the other pictures of its batch."""


class ImageResult(WireModel):
    """What is said about one picture: predictions, or why there are none."""

    predictions: tuple[Prediction, ...] | None = None
    """Best first."""
    none_of_these: float | None = None
    """Probability that the picture shows none of the labels, where that is so for every second picture; null where the model
    has no calibration."""
    problem: Problem | None = None
    batch_size: int | None = None
    timings_ms: ImageTimings | None = None


class StreamLine(ImageResult):
    """One line of a streamed answer: one picture, in the order in which they become ready."""

    index: int
    """Place of the picture in the form, from 0."""
    model_version: str | None
    """That answered; null where none did."""


class StreamEnd(WireModel):
    """The last line of a streamed answer; without it the answer is not whole."""

    end: Literal[True]
    num_pictures: int
    num_failed: int
    """Of these, how many have a problem in their line."""
    problem: Problem | None
    """Why the rest of the body was not read."""
    milliseconds: float


class ClassifyAnswer(WireModel):
    """One result per picture, in the order in which they came."""

    task_id: TaskId
    specialization_id: str
    model_version: str
    parameters: Parameters
    results: tuple[ImageResult, ...]
    timings_ms: Timings


class EmbeddingResult(WireModel):
    """A unit vector, or why there is none."""

    embedding: tuple[float, ...] | None = None
    problem: Problem | None = None


class EmbeddingAnswer(WireModel):
    """Unit vectors that do not depend on any labels; dot products between pictures and texts are comparable."""

    model_version: str
    dimensions: int
    results: tuple[EmbeddingResult, ...]
    timings_ms: Timings


class ModelInfo(WireModel):
    """A model that is being served."""

    name: str
    version: str
    digest: str
    """SHA-256 of the bundle."""
    architecture: str
    image_size: int
    embed_dim: int
    num_generated: int
    """Values that are generated for a task."""
    templates: tuple[str, ...]
    metrics: dict[str, float]
    none_of_these: NoneOfThese | None = None
    """How `none_of_these` comes from `score` and `match` of the best label, and how well it held on other pictures."""
    note: str | None = None
    """What to know before believing it; of the model that comes with the project."""


VersionState = Literal["champion", "loaded", "loading", "refused"]


class VersionStatus(WireModel):
    """How far one version is."""

    version: str
    state: VersionState
    digest: str | None = None
    reason: str | None = None
    """Why it was refused."""


class ModelList(WireModel):
    """`GET /v1/models`."""

    models: tuple[ModelInfo, ...]
    """Those that can be used, the champion first."""
    versions: tuple[VersionStatus, ...] = ()
    """All that the service knows of, also those being loaded and those refused."""


class Health(WireModel):
    """`GET /healthz`."""

    status: Literal["ok"]
    model_version: str
