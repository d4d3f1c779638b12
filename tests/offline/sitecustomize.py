"""Keeps a Python process off the network, loopback aside; the tests put this folder on its path."""

import sys

LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::")


def refuse(event, arguments):
    """Refuse to send anything to an address of another machine."""
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            raise PermissionError(f"the tests may not reach {address[0]}")


sys.addaudithook(refuse)
