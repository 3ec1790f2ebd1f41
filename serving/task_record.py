"""What a task is, and the two addresses that follow from its content."""

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import Literal

from infra.config import StrictModel, content_hash
from training.specialize import check_labels, check_templates

_TASK_ID = re.compile("[a-z2-7]{52}")


class TaskRecord(StrictModel):
    """The stored form of a task."""

    schema_version: Literal[1] = 1
    task_id: str
    tenant: str
    labels: tuple[str, ...]
    templates: tuple[str, ...] | None
    """None for the model's own, whichever model serves the task."""
    pinned_version: str | None


def make_record(
    *, tenant: str, labels: Sequence[str], templates: Sequence[str] | None, pinned_version: str | None
) -> TaskRecord:
    """The record of a task, its labels in canonical form.

    Raises:
        BadInputError: labels or templates that cannot be used; the message names the one.
    """
    checked_labels = check_labels(labels)
    checked_templates = None if templates is None else check_templates(templates)
    return TaskRecord(
        task_id=task_id(tenant=tenant, labels=checked_labels, templates=checked_templates, pinned_version=pinned_version),
        tenant=tenant,
        labels=checked_labels,
        templates=checked_templates,
        pinned_version=pinned_version,
    )


def task_id(*, tenant: str, labels: Sequence[str], templates: Sequence[str] | None, pinned_version: str | None) -> str:
    """Address of a task: base32 SHA-256 of its canonical JSON, lower case, without padding.

    It depends on nothing else, so the same task has the same address on every server and for ever.
    """
    digest = content_hash(
        {
            "tenant": tenant,
            "labels": list(labels),
            "templates": None if templates is None else list(templates),
            "pinned_version": pinned_version,
        }
    )
    return base64.b32encode(bytes.fromhex(digest)).decode().rstrip("=").lower()


def is_task_id(text: str) -> bool:
    """Whether a text could be the address of a task; only such a text becomes part of a path."""
    return _TASK_ID.fullmatch(text) is not None


def specialization_id(task: str, bundle_digest: str) -> str:
    """Address of the encoder that one model makes for one task: hex SHA-256."""
    return hashlib.sha256(f"{task}:{bundle_digest}".encode()).hexdigest()
