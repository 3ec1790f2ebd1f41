"""What tells one version of a run's input from another: the content of local files, what its store says of a remote one."""

from collections.abc import Callable, Sequence

from infra import storage
from infra.errors import BadInputError
from pipeline.steps import StepRecord


def identities(uri: str, files_of: Callable[[str], list[str]]) -> list[str]:
    """What tells one version of an input from another: the content of a local file, or of the files of a folder.

    A remote input is known by its address, so that a plan needs no credentials; `check_inputs_unchanged` does the rest.
    """
    return [storage.fingerprint(file) for file in files_of(uri)] if storage.is_local(uri) else [uri]


def input_versions(uris: Sequence[str]) -> dict[str, str | None]:
    """What the store says of remote inputs without reading them; local ones have their content in the address."""
    return {uri: storage.version_tag(uri) for uri in uris if not storage.is_local(uri)}


def check_inputs_unchanged(record: StepRecord) -> None:
    """Raises BadInputError when a remote input was changed in place after it was read; silent when the store does not tell."""
    for uri, before in record.facts.get("input_versions", {}).items():
        now = storage.version_tag(uri) if before else None
        if now and now != before:
            raise BadInputError(
                f"{uri} changed after it was read ({before} then, {now} now); "
                "give the new one a name of its own, or remove what was made of the old one: hyperclip clean"
            )
