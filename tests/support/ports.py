"""Ports for the servers of tests, such that two that ask here beside each other never have the same."""

import fcntl
import os
import random
import socket
import sys
import tempfile

# Below those that the kernel deals out, so that no connection has one while a server is away.
FIRST, END = 12000, 32768

_locks = os.open(os.path.join(tempfile.gettempdir(), "photon-test-ports-%d" % os.getuid()), os.O_RDWR | os.O_CREAT, 0o600)
_mine = set()


def take(port):
    """Does nobody listen there, and is it ours from now on?"""
    if port in _mine:
        return False
    fcntl.lockf(_locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    with socket.socket() as s:
        s.bind(("127.0.0.1", port))
    _mine.add(port)
    return True


def free_ports(count, row=1):
    """So many that nobody listens on, each the first of a row of such. A byte of one file is locked for each, as long as
    this process lives."""
    found, tries = [], 0
    while len(found) < count:
        tries += 1
        port = random.SystemRandom().randrange(FIRST, END - row + 1)  # whatever seed a test has set
        try:
            if all(take(port + i) for i in range(row)):
                found.append(port)
        except OSError:
            if tries > 1000:
                raise
    return found


if __name__ == "__main__":  # for tests that are not in Python: a port that is theirs, with the next one, until stdin ends
    print(free_ports(1, 2)[0], flush=True)
    sys.stdin.read()
