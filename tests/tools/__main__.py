"""Makes .tools."""

import sys

from tests.packages import MissingError
from tests.tools import build

try:
    build()
except MissingError as e:
    sys.exit(f"tests/tools: {e}")
