"""Every route, every status: starts one server, walks the suites, ends in "N passed, N failed"."""

import sys

import agents
import audit
import chain
import cluster
import drain
import fixture
import forks
import framing
import generic
import kit
import pages
import participation
import people
import pins
import quotas
import rotation
import rounds
import silos
import steps
import store
import streams
import tls
import versions


# Side by side in `make test`, as they mostly wait: run.sh BUILD first, run.sh BUILD second. A module's own tests keep their order.
PARTS = {"first": (generic, people, pages, framing, streams, silos, participation, audit, quotas, rotation, chain),
         "second": (rounds, store, steps, forks, tls, pins, versions, agents, drain, cluster)}


def main():
    server = kit.Server(sys.argv[1])
    passed = failed = 0
    try:
        server.start()
        fixture.load(server)
        part = PARTS.get(sys.argv[2]) if len(sys.argv) == 3 else None
        passed, failed = kit.run_tests(server, part or PARTS["first"] + PARTS["second"], () if part else sys.argv[2:])
        server.stop()
    except Exception as error:  # the counts must come out whatever happens
        failed += 1
        print("  FAIL %s: %s" % (type(error).__name__, error))
    finally:
        if failed:
            print(server.log_tail())
        if server.process and server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        server.remove()
    print("%d passed, %d failed" % (passed, failed))
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
