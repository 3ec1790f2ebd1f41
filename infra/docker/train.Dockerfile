# Training, and the driver of `hyperclip run`: a run starts with data preparation, so both extras are in here and a task of
# either kind may land on any node that has this image.
# Build from the root of the checkout: docker build -f infra/docker/train.Dockerfile -t ghcr.io/your-org/hyperclip-train:0.1.0 .
# torch brings its own CUDA libraries, so a CUDA base would hold them twice; the host gives the driver.  DeepSpeed's fused CUDA
# optimizers are compiled at first use and need nvcc: to use them, build on a `-devel` base with Python 3.11.
FROM python:3.11.14-slim-trixie

# g++: DeepSpeed compiles its CPU communication op at first use.  wget: KubeRay's probes.  Everything goes to /usr/local, as
# KubeRay starts Ray from a login shell that resets PATH.
# Debian keeps one version of a package at a time, so a pinned one would fail to build at its next fix.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ wget && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token MLFLOW_DISABLE_TELEMETRY=true \
    HF_HUB_OFFLINE=1 NO_ALBUMENTATIONS_UPDATE=1 WANDB_MODE=disabled \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /opt/hyperclip
# The driver for the object store of `workspace`; it pins fsspec to the very version of the lock.
ARG OBJECT_STORE="s3fs==2026.9.0"
COPY LICENSE NOTICE README.md pyproject.toml requirements.lock ./
# The dependencies come first, so that a change of our code does not install them again: empty packages stand in for ours.
RUN mkdir data_prep infra pipeline serving training \
    && pip install --compile --constraint requirements.lock --editable '.[data,train]' ${OBJECT_STORE}
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
