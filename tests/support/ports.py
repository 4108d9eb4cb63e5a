"""Ports for the servers of tests, such that two that ask here beside each other never have the same."""

import fcntl
import os
import random
import socket
import tempfile

# Below those that the kernel deals out, so that no connection has one while a server is away.
FIRST, END = 12000, 32768

_locks = os.open(os.path.join(tempfile.gettempdir(), "photon-test-ports-%d" % os.getuid()), os.O_RDWR | os.O_CREAT, 0o600)
_mine = set()


def free_ports(count):
    """So many that nobody listens on. A byte of one file is locked for each, as long as this process lives."""
    found, tries = [], 0
    while len(found) < count:
        tries += 1
        port = random.SystemRandom().randrange(FIRST, END)  # whatever seed a test has set
        try:
            if port in _mine:
                continue
            fcntl.lockf(_locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            with socket.socket() as s:
                s.bind(("127.0.0.1", port))
        except OSError:
            if tries > 1000:
                raise
            continue
        _mine.add(port)
        found.append(port)
    return found
