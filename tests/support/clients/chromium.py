"""Starts Chromium for the tests of web pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.remote.remote_connection import RemoteConnection

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
NOT_INSTALLED = "Chromium is not installed: apt-get install chromium chromium-driver"

in_chromium = pytest.mark.xdist_group("chromium")


@contextmanager
def running_chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """Start Chromium with this folder as its profile. Its features that use the network are off."""
    if CHROMIUM is None or DRIVER is None:
        if os.environ.get("CI") == "true":
            pytest.fail(NOT_INSTALLED)
        pytest.skip(NOT_INSTALLED)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for name in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        "no-proxy-server",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{name}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Driver(DRIVER)) as driver:
        assert isinstance(driver.command_executor, RemoteConnection)
        driver.command_executor.client_config.timeout = 60
        driver.set_page_load_timeout(20)
        driver.set_script_timeout(20)
        yield driver
