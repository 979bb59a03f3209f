"""A real Chromium without a window, driven by selenium."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SCREENSHOTS = Path(__file__).parents[2] / "runs" / "screenshots"
"""Where CI finds what the pages look like."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars",
)  # fmt: skip
UNDRAWN = "[...document.querySelectorAll('.plot, .heat')].filter((p) => !p.dataset.drawn)"


class Browser:
    """One page at a time, and what it said on its console."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Opens a file and waits until the plots near the screen are drawn."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.scheme(dark)
        self.driver.get(page.absolute().as_uri())
        self.wait("return document.documentElement.dataset.ready === 'true'")

    def scroll(self) -> None:
        """Through the page as a reader does, until every plot is drawn; then back to its top."""
        for place in self.run(f"return {UNDRAWN}"):
            self.run("arguments[0].scrollIntoView({ behavior: 'instant' })", place)
            self.wait("return arguments[0].dataset.drawn", 60, place)
        self.run("scrollTo({ top: 0, behavior: 'instant' })")

    def scheme(self, dark: bool) -> None:
        """What the reader's system prefers."""
        still = {"name": "prefers-reduced-motion", "value": "reduce"}  # nothing moves by itself
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})

    def medium(self, name: str) -> None:
        """What the page is shown on: ``print``, or a screen."""
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": name})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, seconds: float = 60, *arguments: Any) -> None:
        """Until a script returns something true."""
        end = time.monotonic() + seconds
        while not self.run(script, *arguments):
            assert time.monotonic() < end, f"not within {seconds} s: {script}; {self.said()}"
            time.sleep(0.05)

    def said(self) -> list[str]:
        """Errors and warnings on the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def picture(self, name: str) -> None:
        """The whole page, into the folder that CI keeps."""
        self.scroll()
        width, height = self.run(
            "const d = document.documentElement; return [d.clientWidth, d.scrollHeight]"
        )
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        asked = {"captureBeyondViewport": True, "clip": clip}
        png = self.driver.execute_cdp_cmd("Page.captureScreenshot", asked)["data"]
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        (SCREENSHOTS / f"{name}.png").write_bytes(base64.b64decode(png))

    def mouse(self, x: float, y: float, *more: tuple[float, float], click: bool = False) -> None:
        """Moves the mouse there, in pixels of the window; on along ``more``, button held."""

        def send(kind: str, at: tuple[float, float], button: str = "none") -> None:
            event = {"type": kind, "x": at[0], "y": at[1], "button": button, "clickCount": 1}
            self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

        send("mouseMoved", (x, y))
        if click or more:
            send("mousePressed", (x, y), "left")
            for point in more:
                send("mouseMoved", point, "left")
            send("mouseReleased", (more or ((x, y),))[-1], "left")


def start_chromium(profile: Path) -> Any:
    """A driver of a Chromium that starts with an empty profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = next(filter(None, map(shutil.which, NAMES)))
    for switch in (*SWITCHES, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Skips where no Chromium is installed, unless EVOMERGE_REQUIRE_BROWSER is set."""
    if not any(map(shutil.which, NAMES)) or not shutil.which("chromedriver"):
        why = "no Chromium with chromedriver is installed (apt-get install chromium-driver)"
        assert "EVOMERGE_REQUIRE_BROWSER" not in os.environ, why
        pytest.skip(why)
    driver = start_chromium(tmp_path_factory.mktemp("chromium"))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Browser]]:
    """Opens HTML text as a file, and reads it to its end unless ``read`` is False.

    The page must have nothing to complain about in the end.
    """
    browser.said()

    def open_page(text: str, read: bool = True, **how: Any) -> Browser:
        page = tmp_path / "report.html"
        page.write_text(text, "utf-8", "replace")
        browser.open(page, **how)
        if read:
            browser.scroll()
        return browser

    yield open_page
    assert browser.said() == []
