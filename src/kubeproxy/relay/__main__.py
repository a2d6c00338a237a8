"""`python -m kubeproxy.relay CONTROL MARK LIMIT`: the relay process; the daemon starts it."""

import sys

from kubeproxy.relay.worker import main

main(*map(int, sys.argv[1:4]))
