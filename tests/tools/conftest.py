"""The tools are programs in a folder of their own, which they expect on the path."""

import sys

from tests.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tools"))
