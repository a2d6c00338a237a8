"""Notifies a service manager of the state of the program: sd_notify(3), for units of Type=notify.

The manager listens on the datagram socket that NOTIFY_SOCKET names; without it, and on Windows, nothing is
sent.
"""

import os
import socket
import sys


def notify(message: str) -> None:
    """Sends a message such as "READY=1". An error is ignored."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if sys.platform == "win32" or not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_UNIX, kind) as manager:
            manager.sendto(message.encode(), address)
    except OSError:
        pass
