"""A headless Chromium that is installed on this machine, driven by Playwright (Apache-2.0).

Nothing is downloaded: the browser is `CHROMIUM`, or the first of `NAMES` on the path.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """Return the path of the browser, or None where there is none, or no Playwright."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return None
    given = os.environ.get("CHROMIUM")
    return given or next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser() -> Iterator[Any]:
    """Start the browser; end it on leaving."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_browser(),
            args=["--no-sandbox", "--disable-gpu", "--enable-precise-memory-info"])
        yield browser
        browser.close()
