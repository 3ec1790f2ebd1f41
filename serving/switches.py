"""Ray Serve's own switches for speed and for safety: environment variables, which Serve reads when a process imports it.

What each of those for speed is worth is measured by `tests.benchmarks.serve_switches`; docs/serving.md has the figures.
`rayservice.yaml` sets the same ones, and a test holds the two together.
"""

import os
import sys
from collections.abc import Mapping

FAST: Mapping[str, str] = {
    # our deployments never block their event loop (work goes to threads of their own), so one loop is enough
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # calls between replicas go over gRPC instead of through Ray's object store
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # of one such message; 4 MiB by default, less than a picture or a package may have.  Bodies are bounded before (limits.py)
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
}

SAFE: Mapping[str, str] = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.proxy_headers:middlewares"}
"""Of the proxy alone."""


def switch_on() -> None:
    """Choose all of them for this process and the Ray cluster that it starts; what the environment says already, stays.

    Call it before Ray Serve is imported: it has read them by then, and is left as it is.
    """
    if "ray.serve" in sys.modules:
        return
    for name, value in {**FAST, **SAFE}.items():
        os.environ.setdefault(name, value)
