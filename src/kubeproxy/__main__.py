"""`python -m kubeproxy` is the command kube-proxy."""

import sys

from kubeproxy.cli import main

sys.exit(main())
