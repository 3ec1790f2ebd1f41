"""Tasks outlive the service.  The last file of this package: it ends the service that the others use."""

import socket

import pytest

from serving.client import ServingClient
from serving.config import ServingConfig
from serving.launch import PortTakenError, running
from tests.integration.serving.conftest import Service
from tests.integration.serving.expected import check_predictions, expected_scores
from tests.unit.serving_helpers import picture
from training.bundle import Bundle

pytestmark = pytest.mark.integration


def test_tasks_survive_a_restart(
    service: Service, client: ServingClient, config: ServingConfig, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["sun", "moon"]
    task = client.create_task(labels)
    service.stack.close()
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(PortTakenError, match="cannot listen"),
        running(config.rebuilt(port=taken.getsockname()[1])),
    ):
        pass
    with running(config) as url, ServingClient(url) as again:
        answer = again.classify(task.task_id, [picture(3)])
        check_predictions(answer.results[0].predictions, expected_scores(bundle, labels, picture(3)))
        assert answer.timings_ms.specialize is None  # it was read, not made again
        assert again.create_task(labels).cached
    # the service has ended once and started again: what Ray says of the end would be there by now
    assert "failed" not in capsys.readouterr().out
