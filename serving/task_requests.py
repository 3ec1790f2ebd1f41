"""From what a client asks for to the record of the task, remembered.

Checking and hashing 10,000 names takes tens of milliseconds, finding them again less than one.
"""

from collections import OrderedDict

from infra.errors import BadInputError
from serving.limits import ServingLimits
from serving.schemas import TaskRequest
from serving.task_record import TaskRecord, make_record

MAX_LABELS = 1_000_000
"""Labels remembered in all, about 100 MB."""

_Asked = tuple[str, tuple[str, ...], tuple[str, ...] | None, str | None]


class TaskRequests:
    """The least recently asked for go first, bounded by the number of labels; for one event loop.

    A record follows from the request alone, so none is ever out of date.
    """

    def __init__(self, limits: ServingLimits, *, max_labels: int = MAX_LABELS) -> None:
        self._limits = limits
        self._max_labels = max_labels
        self._num_labels = 0
        self._records: OrderedDict[_Asked, TaskRecord] = OrderedDict()

    def record(self, request: TaskRequest, tenant: str) -> TaskRecord:
        """What the task is.

        Raises:
            BadInputError: it is none, or larger than allowed.
        """
        asked = (tenant, request.labels, request.templates, request.pinned_version)
        if (known := self._records.get(asked)) is not None:
            self._records.move_to_end(asked)
            return known
        self._check_size(request)
        record = make_record(
            tenant=tenant, labels=request.labels, templates=request.templates, pinned_version=request.pinned_version
        )
        if record.labels == request.labels:  # as a rule: then one copy of the names is enough
            asked = (tenant, record.labels, request.templates, request.pinned_version)
        self._records[asked] = record
        self._num_labels += len(record.labels)
        while self._num_labels > self._max_labels:
            _, dropped = self._records.popitem(last=False)
            self._num_labels -= len(dropped.labels)
        return record

    def _check_size(self, request: TaskRequest) -> None:
        limits = self._limits
        if len(request.labels) > limits.max_labels:
            raise BadInputError(f"{len(request.labels):,} labels; at most {limits.max_labels:,} are allowed in one task")
        if request.templates is not None and len(request.templates) > limits.max_templates:
            raise BadInputError(f"{len(request.templates):,} templates; at most {limits.max_templates:,} are allowed")
        for text in (*request.labels, *(request.templates or ())):
            if len(text) > limits.max_label_characters:
                raise BadInputError(
                    f"{text[:40]!r}... has {len(text):,} characters; at most {limits.max_label_characters} are allowed"
                )
