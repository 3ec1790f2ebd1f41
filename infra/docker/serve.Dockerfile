# Serving: neither DeepSpeed nor img2dataset.
# Build from the root of the checkout: docker build -f infra/docker/serve.Dockerfile -t ghcr.io/your-org/hyperclip-serve:0.1.0 .
FROM python:3.11.14-slim-trixie

# KubeRay's probes call wget.  Everything goes to /usr/local, as KubeRay starts Ray from a login shell that resets PATH.
# Debian keeps one version of a package at a time, so a pinned one would fail to build at its next fix.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token MLFLOW_DISABLE_TELEMETRY=true HF_HUB_OFFLINE=1

WORKDIR /opt/hyperclip
# The driver for the object store of `workspace`; it pins fsspec to the very version of the lock.
ARG OBJECT_STORE="s3fs==2026.9.0"
# Encoders this small are served on CPUs.  Torch from PyPI brings several GB of CUDA: this index has it without.
# For GPUs build with --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY LICENSE NOTICE README.md pyproject.toml requirements.lock ./
RUN grep -E '^torch(vision)?==' requirements.lock > torch.lock \
    && pip install --compile --index-url ${TORCH_INDEX} --no-deps --requirement torch.lock && rm torch.lock
# The dependencies come first, so that a change of our code does not install them again: empty packages stand in for ours.
RUN mkdir data_prep infra pipeline serving training \
    && pip install --compile --constraint requirements.lock --editable '.[serve]' ${OBJECT_STORE}
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
EXPOSE 8000
# For plain Docker; Kubernetes ignores it and KubeRay brings its own probes.
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=4 \
    CMD ["wget", "--quiet", "--tries=1", "--timeout=4", "--output-document=/dev/null", "http://127.0.0.1:8000/healthz"]
CMD ["hyperclip", "serve", "/etc/hyperclip/run.yaml"]
