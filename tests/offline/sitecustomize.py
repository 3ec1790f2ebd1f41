"""Puts a process, and every Python process it starts, on a machine without network; its own addresses stay.

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
    if name in ("localhost", socket.gethostname()) or _is_here(name):
        return
    with open(os.environ["OFFLINE_LOG"], "a") as log:  # noqa: PTH123  (pathlib is not to be imported by every process)
        log.write(f"{event} {name}\n")
    raise OSError(errno.ENETUNREACH, f"the network is off: {event} {name}")


def _is_here(address: str) -> bool:
    """Loopback, or another address of this machine: only those can be bound."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
        with socket.socket(socket.AF_INET if found.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except (ValueError, OSError):
        return False
    return True


sys.addaudithook(_refuse)
