"""An object store on loopback: moto's server, reached as any S3 is, through AWS's own environment variables."""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest
from moto.server import ThreadedMotoServer

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def object_store() -> Iterator[str]:
    """A bucket of its own, `s3://...`; processes started while it lasts reach it too."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    try:
        with pytest.MonkeyPatch.context() as patched:
            for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
                patched.setenv(name, value)
            patched.delenv("AWS_PROFILE", raising=False)
            fsspec.config.conf.pop("s3", None)
            fsspec.get_filesystem_class("s3").clear_instance_cache()  # one that was asked without credentials remembers it
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
            yield f"s3://{bucket}"
            fsspec.filesystem("s3").clear_instance_cache()  # one that knows this server must not outlive it
    finally:
        server.stop()
