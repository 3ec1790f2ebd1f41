"""Where the deploy files lie, and what they are held against."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "infra/kuberay"
COMPOSE = ROOT / "infra/mlflow/compose.yaml"
DOCKERFILES = [*sorted((ROOT / "infra/docker").glob("*.Dockerfile")), ROOT / "infra/mlflow/Dockerfile"]
LOCK = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
PINNED = re.compile(r"^[\w./-]+:v?\d+\.\d+[\w.-]*$")
