"""The shipped model works out of the box: no model named, nothing configured, the network off."""

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from data_prep.sample.pictures import read_sample
from serving.client import ServingClient
from tests.offline_command import HYPERCLIP, hyperclip_offline, offline_environment
from training.bundle import read_bundle_manifest
from training.shipped import shipped_model_folder, shipped_model_name

pytestmark = pytest.mark.integration
LABELS = ["pizza", "castle", "guitar"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A drawing of a pizza by an artist that the model has not seen."""
    sample = read_sample("evaluation")
    place = sample["caption"].to_pylist().index("pizza")
    path = tmp_path / "photo.webp"
    path.write_bytes(sample["image"][place].as_py())
    return path


def test_the_network_is_off_in_these_tests(tmp_path: Path) -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=offline_environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert "the network is off" in ended.stderr
    assert "192.0.2.1" in (tmp_path / "tried.log").read_text()


def test_classify_and_specialize_need_no_model_and_no_network(tmp_path: Path, photo: Path) -> None:
    says = f"using the shipped model {shipped_model_name()} (docs/model.md); name another with --model\n"
    made = hyperclip_offline("specialize", "--labels", ",".join(LABELS), "--output", "encoder", folder=tmp_path)
    assert (made.status, made.error, made.tried) == (0, says, "")
    assert "3 labels" in made.output
    asked = hyperclip_offline("classify", photo.name, "--encoder", "encoder", "--json", "--top-k", "3", folder=tmp_path)
    assert (asked.status, asked.error, asked.tried) == (0, says, "")  # and nothing of it among the JSON
    (found,) = [json.loads(line) for line in asked.output.splitlines()]
    assert sorted(one["label"] for one in found["predictions"]) == sorted(LABELS)
    assert sum(one["score"] for one in found["predictions"]) == pytest.approx(1, abs=1e-5)  # a softmax, rounded


@pytest.mark.slow
def test_serve_needs_no_run_and_no_network(tmp_path: Path, photo: Path) -> None:
    """Ray, Serve, the page and a prediction."""
    with subprocess.Popen(
        [HYPERCLIP, "serve", "--set", "serving.port=0", "--set", "cluster.num_cpus=2"],
        env=offline_environment(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as service:  # fmt: skip
        watchdog = threading.Timer(240, service.kill)
        watchdog.start()
        try:
            assert service.stdout is not None
            said = ""
            while not (found := re.search(r"Serving on (http://127\.0\.0\.1:\d+) ", said)):
                line = service.stdout.readline()
                assert line, f"ended before it served:\n{said}"
                said += line
            assert (
                f"using the shipped model {shipped_model_name()} (docs/model.md); name another with hyperclip serve CONFIG"
                in said
            )
            assert "Name the classes" in httpx.get(f"{found[1]}/", trust_env=False).raise_for_status().text
            with ServingClient(found[1]) as client:
                task = client.create_task(LABELS)
                answer = client.classify(task.task_id, [photo.read_bytes()], top_k=3)
            assert answer.model_version == f"bundle-{read_bundle_manifest(shipped_model_folder()).digest[:12]}"
            assert sorted(one.label for one in answer.results[0].predictions or ()) == sorted(LABELS)
            service.send_signal(signal.SIGINT)
            assert service.wait() == 0
        finally:
            watchdog.cancel()
            service.kill()
    assert (tmp_path / ".cache" / "hyperclip" / "tasks").is_dir()
