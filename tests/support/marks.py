"""Marks of tests that not every machine or run can do."""

import os
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")


only_ci = pytest.mark.skipif(
    os.environ.get("CI") != "true",
    reason="only CI tests how tests, installation and benchmark work: set CI=true",
)
"""For tests of the tools with which this project is made; they take half a minute."""
