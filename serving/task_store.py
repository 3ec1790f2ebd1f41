"""Tasks and the encoders made for them, in a folder or an object store, so that a restart finds them.

tasks/TENANT/TASK.json                                  what the task is
used/TENANT/TASK.LABELS.SECONDS                         a note of its last use (task_ledger.py)
specialized/TASK/SPECIALIZATION/encoder.safetensors     delta and label features, written before
specialized/TASK/SPECIALIZATION/task.json               which says that they are complete
specialized/TASK/SPECIALIZATION/package.zip             the edge package, once somebody asked for it

Every address follows from the content: writing the same thing twice, or at the same time, changes nothing.
"""

import logging
import tempfile
from pathlib import Path

from infra import artefacts, storage
from infra.errors import BadInputError, CorruptArtefactError, HyperClipError
from serving.task_record import TaskRecord, is_task_id, specialization_id, task_id
from training.bundle import Bundle
from training.specialize import ENCODER_NAME, TASK_NAME, SpecializedEncoder, load_specialized, specialized_files

logger = logging.getLogger(__name__)

PACKAGE_NAME = "package.zip"


class NotSpecializedError(HyperClipError):
    """No usable encoder is stored for this task and model; making it (again) is the remedy."""


class TaskStore:
    """Reads and writes tasks below one URI."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def put(self, record: TaskRecord) -> None:
        """Store a task; one that is there is left as it is, unless it is damaged."""
        try:
            if self.get(record.task_id, tenant=record.tenant) is not None:
                return
        except CorruptArtefactError as error:
            logger.error("stored again: %s", error)
        storage.write_atomic(self._record_uri(record.tenant, record.task_id), record.model_dump_json(indent=1))

    def has(self, task: str, *, tenant: str) -> bool:
        return storage.exists(self._record_uri(tenant, task))

    def get(self, task: str, *, tenant: str) -> TaskRecord | None:
        """A task, or None when there is none.

        Raises:
            CorruptArtefactError: what is stored is not the task of that address.
        """
        uri = self._record_uri(tenant, task)
        if not storage.exists(uri):
            return None
        try:
            artefacts.check_schema_version(uri, newest=1)
            record = artefacts.read_model(uri, TaskRecord)
        except BadInputError:
            if not storage.exists(uri):  # deleted just now
                return None
            raise
        expected = task_id(
            tenant=tenant, labels=record.labels, templates=record.templates, pinned_version=record.pinned_version
        )
        if not task == record.task_id == expected:
            raise CorruptArtefactError(f"{uri} holds another task ({expected}); delete the file and create the task again")
        return record

    def delete(self, task: str, *, tenant: str) -> None:
        """Forget a task and what was made for it; an unknown one is no error."""
        storage.remove(self._record_uri(tenant, task))
        storage.remove(storage.join(self.uri, "specialized", task))

    def tasks_with_encoders(self) -> list[str]:
        """Addresses of the tasks of all tenants for which something was made, in no order that means anything."""
        return [uri.rpartition("/")[2] for uri in storage.list_folders(storage.join(self.uri, "specialized"))]

    def specializations(self, task: str) -> list[str]:
        """Ids of the encoders of a task, by whatever model, also of unfinished ones."""
        return [uri.rpartition("/")[2] for uri in storage.list_folders(storage.join(self.uri, "specialized", task))]

    def delete_encoder(self, task: str, specialization: str) -> None:
        """Remove an encoder with its package; the task stays, and the next call for that model makes it again."""
        storage.remove(storage.join(self.uri, "specialized", task, specialization))

    def has_encoder(self, task: str, specialization: str) -> bool:
        return storage.exists(self._encoder_uri(task, specialization, TASK_NAME))

    def put_encoder(self, task: str, encoder: SpecializedEncoder, bundle: Bundle) -> str:
        """Store an encoder whole or not at all; returns its specialization id."""
        specialization = specialization_id(task, bundle.digest)
        for name, data in specialized_files(encoder, bundle).items():  # the one that says "done" last
            storage.write_whole(self._encoder_uri(task, specialization, name), data)
        return specialization

    def get_encoder(self, task: str, specialization: str, bundle: Bundle) -> SpecializedEncoder:
        """Read an encoder.

        Raises:
            NotSpecializedError: none is there, it is damaged, or another model made it.
        """
        try:
            if storage.is_local(self.uri):
                return load_specialized(storage.local_path(self._encoder_uri(task, specialization, TASK_NAME)).parent, bundle)
            with tempfile.TemporaryDirectory() as folder:
                for name in (ENCODER_NAME, TASK_NAME):
                    (Path(folder) / name).write_bytes(storage.read_bytes(self._encoder_uri(task, specialization, name)))
                return load_specialized(Path(folder), bundle)
        except (BadInputError, CorruptArtefactError) as error:
            raise NotSpecializedError(f"no encoder {specialization} for task {task}: {error}") from error

    def put_package(self, task: str, specialization: str, package: bytes) -> None:
        storage.write_atomic(self._encoder_uri(task, specialization, PACKAGE_NAME), package)

    def get_package(self, task: str, specialization: str) -> bytes | None:
        uri = self._encoder_uri(task, specialization, PACKAGE_NAME)
        return storage.read_bytes(uri) if storage.exists(uri) else None

    def _record_uri(self, tenant: str, task: str) -> str:
        if not is_task_id(task):
            raise BadInputError(f"{task!r} is not a task id")
        return storage.join(self.uri, "tasks", tenant, f"{task}.json")

    def _encoder_uri(self, task: str, specialization: str, name: str) -> str:
        assert is_task_id(task)
        return storage.join(self.uri, "specialized", task, specialization, name)
