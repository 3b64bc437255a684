"""Marks for tests that do not run on every machine or in every run."""

import os
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")


only_ci = pytest.mark.skipif(
    os.environ.get("CI") != "true",
    reason="only CI tests the test run, the installation and the benchmark: set CI=true",
)
"""For tests of the development tools of this project. They take half a minute."""
