# Data preparation on CPU workers: download, audit, curate, shard.  No torch in here.
# Build from the root of the checkout: docker build -f infra/docker/data.Dockerfile -t ghcr.io/your-org/hyperclip-data:0.1.0 .
# Debian and Python are named by version; pin the digest as well where builds must be bit-equal.
FROM python:3.11.14-slim-trixie

# KubeRay's probes call wget.  Everything goes to /usr/local, as KubeRay starts Ray from a login shell that resets PATH.
# Debian keeps one version of a package at a time, so a pinned one would fail to build at its next fix.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token MLFLOW_DISABLE_TELEMETRY=true \
    HF_HUB_OFFLINE=1 NO_ALBUMENTATIONS_UPDATE=1 WANDB_MODE=disabled

WORKDIR /opt/hyperclip
# The driver for the object store of `workspace`; it pins fsspec to the very version of the lock.
ARG OBJECT_STORE="s3fs==2026.9.0"
COPY LICENSE NOTICE README.md pyproject.toml requirements.lock ./
# The dependencies come first, so that a change of our code does not install them again: empty packages stand in for ours.
RUN mkdir data_prep infra pipeline serving training \
    && pip install --compile --constraint requirements.lock --editable '.[data]' ${OBJECT_STORE}
COPY data_prep data_prep
COPY infra infra
COPY pipeline pipeline
COPY serving serving
COPY training training
# Root owns the code and the user cannot write it, so the bytecode is made here.
ENV PYTHONPATH=/opt/hyperclip
RUN python -m compileall -q data_prep infra pipeline serving training \
    && useradd --uid 1000 --create-home hyperclip
USER 1000:1000
WORKDIR /home/hyperclip
