"""The configuration of a run: one YAML file, validated once."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from data_prep.curation.curate import CurateConfig
from data_prep.download_config import DownloadConfig
from data_prep.picture_partition import ImportConfig
from data_prep.reshard import ReshardConfig
from data_prep.url_list import UrlListConfig
from infra import storage
from infra.cluster import ClusterConfig
from infra.config import StrictModel, content_hash, parse_config
from infra.errors import BadInputError
from infra.tracking import TrackingConfig
from serving.config import ServiceSettings
from training.config import TrainConfig
from training.evaluation.zero_shot import EvaluationConfig

DatasetName = Literal["train", "evaluation"]
_LEAK = ("train", "evaluation")


class UrlListSource(StrictModel):
    """A list of URLs of your own."""

    kind: Literal["url_list"] = "url_list"
    uri: str
    """Parquet, csv, tsv or json lines (the texts also .gz), a file or a folder of them, local or in an object store."""
    columns: UrlListConfig = UrlListConfig()


class SampleSource(StrictModel):
    """The bundled sample, served on loopback for as long as the download lasts and treated as the web is."""

    kind: Literal["sample"]
    port: Annotated[NonNegativeInt, Field(ge=1, le=65535)] = 8391
    """Fixed, because it is part of the URLs: a resumed run must find the list it began with."""


class PicturesSource(ImportConfig):
    """Pictures of your own that are already here, inside parquet files: imported, and nothing is downloaded."""

    kind: Literal["pictures"]
    uris: tuple[str, ...] = Field(min_length=1)
    """Parquet files, or folders of them, local or in an object store."""


class DatasetConfig(StrictModel):
    """From URLs, or pictures, to training shards."""

    source: Annotated[UrlListSource | PicturesSource | SampleSource, Field(discriminator="kind")]
    download: DownloadConfig = DownloadConfig()
    """Of a source of URLs."""
    curate: CurateConfig = CurateConfig()
    shards: ReshardConfig = ReshardConfig()

    @model_validator(mode="after")
    def _download_has_a_use(self) -> Self:
        if isinstance(self.source, PicturesSource) and self.download != DownloadConfig():
            raise ValueError("nothing is downloaded from a source of kind pictures; remove the section download")
        return self


class ShowcaseConfig(StrictModel):
    """The classifier a run makes at its end, to show that all of it works: exported, served, and asked over HTTP."""

    labels: tuple[str, ...] = Field(min_length=2)
    """Class names; evaluation pictures with these captions are classified."""
    num_pictures: PositiveInt = 20
    """At most this many."""
    beside_shipped: bool = False
    """Show what the shipped model answers to the same, and evaluate it on the same tasks; it knows drawings (docs/model.md)."""


class RunConfig(StrictModel):
    """A whole run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Of the MLflow run and the registered model."""
    workspace: str
    """Folder or object store for everything the run makes.  Every machine of the cluster must reach it."""
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig | None = None
    """MLflow; SQLite and a folder in the workspace when absent."""
    datasets: dict[DatasetName, DatasetConfig]
    training: TrainConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    showcase: ShowcaseConfig | None = None
    """Export and serve a classifier at the end; left out when absent."""
    serving: ServiceSettings = ServiceSettings()
    """What it serves and where its tasks lie follows from the run."""

    @model_validator(mode="after")
    def _both_datasets(self) -> Self:
        if missing := {"train", "evaluation"} - self.datasets.keys():
            raise ValueError(f"datasets lacks {', '.join(sorted(missing))}")
        return self

    @model_validator(mode="after")
    def _only_train_leaves_out_the_other(self) -> Self:
        for name, dataset in self.datasets.items():
            if wrong := [other for other in dataset.curate.exclude_near if other in self.datasets and (name, other) != _LEAK]:
                raise ValueError(f"datasets.{name}.curate.exclude_near names {wrong[0]}; only train can leave out evaluation")
        return self

    @model_validator(mode="after")
    def _tracking_is_reachable(self) -> Self:
        if self.tracking is None and not storage.is_local(self.workspace):
            raise ValueError(f"workspace {self.workspace} is no local folder, so tracking.uri must name an MLflow server")
        return self

    @property
    def workspace_uri(self) -> str:
        """Absolute: workers have another current folder."""
        return str(Path(self.workspace).absolute()) if storage.is_local(self.workspace) else self.workspace

    @property
    def resolved_tracking(self) -> TrackingConfig:
        if self.tracking is not None:
            return self.tracking
        folder = Path(self.workspace_uri) / "mlflow"
        return TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", artifact_uri=str(folder / "artifacts"))

    @property
    def run_hash(self) -> str:
        """Of what is computed, not of where."""
        return content_hash(self.model_dump(mode="json", exclude={"workspace", "cluster", "tracking", "serving"}))


def load_run_config(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Read a run configuration.

    Raises:
        BadInputError: no such file, not YAML, or any setting is wrong; every problem is listed.
    """
    try:
        text = storage.read_bytes(str(path)).decode()
    except UnicodeDecodeError as error:
        hint = f"; name it in one as `source: {{kind: pictures, uris: [{path}]}}`" if path.suffix == ".parquet" else ""
        raise BadInputError(f"{path} is no text, so no run configuration{hint}") from error
    return parse_config(text, RunConfig, source=str(path), overrides=overrides)
