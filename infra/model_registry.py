"""Registered models in MLflow: versions with their tags, the candidate, the champion and those before it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from infra.config import StrictModel
from infra.errors import BadInputError, CorruptArtefactError
from infra.tracking import Tracker, TrackingUnavailableError, means_absent, search_filter

CANDIDATE = "candidate"
CHAMPION = "champion"
_CHAMPIONS = "champions"
_MAX_CHAMPIONS = 100  # a tag of MLflow holds 5,000 characters


class ModelVersion(StrictModel):
    """A registered model version."""

    name: str
    version: str
    run_id: str
    source_uri: str
    tags: dict[str, str] = Field(default_factory=dict)
    """What is known about it: digest, accuracy, the pictures it was evaluated on."""


class ModelRegistry:
    """The registered models of the MLflow that a tracker writes to."""

    def __init__(self, tracker: Tracker) -> None:
        import mlflow

        self._mlflow = mlflow
        self._client = tracker.client
        self._tracking_uri = tracker.config.uri

    def register(self, name: str, *, model_uri: str, run_id: str, tags: Mapping[str, str]) -> ModelVersion:
        """Register a logged model as a new version.  The tags are there from its first moment, so that `find_version` finds
        it whatever happens next."""
        version = self._mlflow.register_model(model_uri, name, tags=dict(tags))
        return ModelVersion(name=name, version=str(version.version), run_id=run_id, source_uri=model_uri, tags=dict(tags))

    def find_version(self, name: str, *, tags: Mapping[str, str]) -> ModelVersion | None:
        """The newest version with these tags, or None."""
        found = self._client.search_model_versions(search_filter({"name": name}, tags=tags))
        whole = [version for version in found if version.status == "READY"]
        return self._as_version(max(whole, key=lambda version: int(version.version))) if whole else None

    def versions_with(self, tags: Mapping[str, str]) -> list[ModelVersion]:
        """Versions of any model with these tags."""
        return [self._as_version(found) for found in self._client.search_model_versions(search_filter({}, tags=tags))]

    def make_candidate(self, version: ModelVersion) -> None:
        """Point `candidate` at a version."""
        self._client.set_registered_model_alias(version.name, CANDIDATE, version.version)

    def version_of(self, name: str, alias: str) -> ModelVersion | None:
        """The version an alias points to, or None."""
        try:
            found = self._client.get_model_version_by_alias(name, alias)
        except self._mlflow.exceptions.MlflowException as error:
            if not means_absent(error):
                raise
            return None
        return self._as_version(found)

    def version(self, name: str, version: str) -> ModelVersion:
        """A version by number or by alias.

        Raises:
            BadInputError: no such model, or no such version of it; those that there are are named.
        """
        if not version.isdigit():
            if found := self.version_of(name, version):
                return found
            raise self._absent(name, f"under the alias {version!r}")
        try:
            return self._as_version(self._client.get_model_version(name, version))
        except self._mlflow.exceptions.MlflowException as error:
            if not means_absent(error):
                raise
            raise self._absent(name, version) from error

    # The tag `champions` lists the champions, oldest first, the present one last.  Each command below may be cut off between
    # two writes and run again: whenever the last of the list is not the champion, it is the one to go back to.

    def promote(self, name: str, version: str) -> ModelVersion:
        """Point `champion` at a version, remembering the one before for `rollback`."""
        chosen = self.version(name, version)
        present = self.version_of(name, CHAMPION)
        champions = self._champions(name)
        if present and champions[-1:] != [present.version]:  # someone moved the alias by hand
            champions.append(present.version)
            self._set_champions(name, champions)
        self._client.set_registered_model_alias(name, CHAMPION, chosen.version)
        if champions[-1:] != [chosen.version]:
            self._set_champions(name, [*champions, chosen.version])
        return chosen

    def rollback(self, name: str) -> ModelVersion:
        """Point `champion` back at the version before; a version deleted since is passed over.

        Raises:
            BadInputError: there is no champion, or none before it.
        """
        present = self.version(name, CHAMPION)
        champions = self._champions(name)
        known = {str(v.version) for v in self._client.search_model_versions(search_filter({"name": name}))}
        while champions and (champions[-1] == present.version or champions[-1] not in known):
            champions.pop()
        if not champions:
            raise BadInputError(f"model {name!r} version {present.version} is the first champion: there is none to go back to")
        previous = self.version(name, champions[-1])
        self._set_champions(name, champions)  # first: if the alias does not follow, the next rollback moves it, and no further
        self._client.set_registered_model_alias(name, CHAMPION, previous.version)
        return previous

    def _champions(self, name: str) -> list[str]:
        return [v for v in self._client.get_registered_model(name).tags.get(_CHAMPIONS, "").split(",") if v]

    def _set_champions(self, name: str, versions: list[str]) -> None:
        self._client.set_registered_model_tag(name, _CHAMPIONS, ",".join(versions[-_MAX_CHAMPIONS:]))

    def tag_version(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_model_version_tag(version.name, version.version, key, value)

    def download_model(self, version: ModelVersion, folder: Path) -> Path:
        """Fetch the files of a registered version into a folder; returns the folder of the MLflow model.

        Raises:
            BadInputError: there is no such version any more.
            CorruptArtefactError: its files have gone.
            TrackingUnavailableError: MLflow, or the store of its files, does not answer.
        """
        uri = f"models:/{version.name}/{version.version}"
        download = self._mlflow.artifacts.download_artifacts
        try:
            return Path(download(artifact_uri=uri, dst_path=str(folder), tracking_uri=self._tracking_uri))
        except self._mlflow.exceptions.MlflowException as error:
            reason = str(error).strip().splitlines()[0][:300]
            if means_absent(error):
                raise BadInputError(f"{uri} is not in {self._tracking_uri} any more: {reason}") from error
            raise TrackingUnavailableError(f"{uri} cannot be fetched from {self._tracking_uri}: {reason}") from error
        except OSError as error:
            if "No such file" not in str(error):
                raise
            raise CorruptArtefactError(f"the files of {uri} have gone: {error}") from error

    def _as_version(self, found: Any) -> ModelVersion:
        return ModelVersion(
            name=found.name,
            version=str(found.version),
            run_id=found.run_id or "",
            source_uri=found.source,
            tags={key: str(value) for key, value in found.tags.items()},
        )

    def _absent(self, name: str, version: str) -> BadInputError:
        if not self._client.search_registered_models(search_filter({"name": name})):
            models = ", ".join(sorted(model.name for model in self._client.search_registered_models())) or "none"
            return BadInputError(f"there is no model {name!r} in {self._tracking_uri}; models: {models}")
        found = self._client.search_model_versions(search_filter({"name": name}))
        versions = ", ".join(sorted((str(v.version) for v in found), key=int)) or "none"
        return BadInputError(f"model {name!r} has no version {version}; versions: {versions}")
