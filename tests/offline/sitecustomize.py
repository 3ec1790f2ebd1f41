"""Puts a process, and every Python process it starts, on a machine without network; loopback stays.

Python imports this module by itself where its folder is on PYTHONPATH.  Whoever tries to reach another machine, or to look up
its name, gets the error of a missing network, and leaves a line in the file that OFFLINE_LOG names.
"""

import errno
import ipaddress
import os
import socket
import sys
from typing import Any


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        sock, address = arguments
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or address is None:
            return
        host = address[0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    if name in ("localhost", socket.gethostname()) or _is_loopback(name):
        return
    with open(os.environ["OFFLINE_LOG"], "a") as log:  # noqa: PTH123  (pathlib is not to be imported by every process)
        log.write(f"{event} {name}\n")
    raise OSError(errno.ENETUNREACH, f"the network is off: {event} {name}")


def _is_loopback(name: str) -> bool:
    try:
        found = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return found.is_loopback or found.is_unspecified


sys.addaudithook(_refuse)
