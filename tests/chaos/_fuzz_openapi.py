"""Calls that schemathesis makes from the service's own OpenAPI document, as it allows them and as it does not."""

import unittest
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from tests.chaos._fuzz_http import ANSWERED_WITHIN_S, Answer

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]


@dataclass(frozen=True)
class Asked:
    """One call."""

    name: str
    sent: requests.PreparedRequest | None
    answer: Answer | None
    """None when the connection ended before."""
    against: str | None
    """What the document says against the answer."""

    @property
    def has_body(self) -> bool:
        return self.sent is None or self.sent.method != "HEAD"


class SchemaCalls:
    """For each operation so many calls as the document has them, and as many that break it."""

    def __init__(self, base_url: str, *, labels: list[str], seed: int) -> None:
        """Args: labels, of a task for the operations that take one; it is made again before each call, as some delete it."""
        self._base_url, self._labels, self._seed = base_url, labels, seed
        self._session = requests.Session()
        self._session.trust_env = False
        schema = schemathesis.openapi.from_url(f"{base_url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        self._variants = [
            (operation, mode, with_task)
            for operation in operations
            for mode in GenerationMode
            for with_task in ((False, True) if "{task_id}" in operation.path else (False,))
        ]

    def run(self, count: int) -> Iterator[Asked]:
        """At most so many calls; operations that take nothing have few."""
        for operation, mode, with_task in self._variants:
            yield from self._of_operation(operation, mode, count // len(self._variants), with_task=with_task)

    def _of_operation(self, operation: APIOperation, mode: GenerationMode, count: int, *, with_task: bool) -> list[Asked]:
        asked: list[Asked] = []

        @hypothesis.seed(self._seed)
        @hypothesis.settings(
            max_examples=max(1, count), database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Case) -> None:
            if with_task:
                made = self._session.post(
                    f"{self._base_url}/v1/tasks", json={"labels": self._labels}, timeout=ANSWERED_WITHIN_S
                )
                case.path_parameters["task_id"] = made.json()["task_id"]
            asked.append(self._ask(f"openapi: {operation.label}, {mode.value}", case))

        with suppress(Unsatisfiable, unittest.SkipTest):  # nothing in it can be wrong
            ask()
        return asked

    def _ask(self, name: str, case: Case) -> Asked:
        try:
            response = case.call(base_url=self._base_url, session=self._session, timeout=ANSWERED_WITHIN_S)
        except requests.RequestException as error:
            return Asked(name, error.request, None, repr(error))
        against = None
        try:
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as group:
            against = "; ".join(str(failure).partition("\n")[0] for failure in group.exceptions)
        headers = {header.lower(): values[0] for header, values in response.headers.items()}
        return Asked(name, response.request, Answer(response.status_code, headers, response.content), against)
