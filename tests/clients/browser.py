"""A real browser in front of the dashboard, and what every page of it has to keep."""

import json
import shutil
from contextlib import contextmanager
from urllib.parse import urlparse

from gateway import TOOLS

CHROMIUM = shutil.which("chromium")

# What the request log keeps for pages to show.
LOG = {"prompts": True, "images": "thumbnails", "flush_ms": 100}
READ_KEY = "ig-reader-0123456789abcdef"


def needs():
    """What is missing for it, or an empty text."""
    if not CHROMIUM:
        return "chromium is not installed"
    return ""


class Browser:
    """One window on one gateway, with notes of all that pages must not do."""

    def __init__(self, page, gateway, folder):
        self.page, self.gateway, self.folder = page, gateway, folder
        self.host = urlparse(gateway.admin).netloc
        self.complaints, self.elsewhere = [], []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._asked)
        self._axe = (TOOLS / "node" / "node_modules" / "axe-core" / "axe.min.js").read_text()

    def _said(self, message):
        # An answer of 4xx is a page as well; the browser calls each one an error.
        if message.type in ("error", "warning") and "the server responded with a status of 4" not in message.text:
            self.complaints.append(message.text)

    def _asked(self, request):
        address = urlparse(request.url)
        if address.scheme in ("http", "https", "ws", "wss") and address.netloc != self.host:
            self.elsewhere.append(request.url)

    def open(self, path):
        """Goes to a page and waits until it is there. Pages that are live are never idle."""
        return self.page.goto(self.gateway.admin + path, wait_until="load")

    def sign_in(self, key, path="/"):
        self.open(path)
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url(lambda url: "/sign-in" not in url)

    def check(self, name):
        """Nothing was complained of, nothing was asked of another host, and everybody can use the page: light and dark, wide and
        narrow."""
        page = self.page
        for width, scheme in [(1280, "light"), (1280, "dark"), (360, "light")]:
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            page.screenshot(path=self.folder / f"{name}-{width}-{scheme}.png", full_page=True)
            if width == 360:
                widest = page.evaluate("document.documentElement.scrollWidth")
                assert widest <= width, f"{name} is {widest} pixels wide on a phone"
                continue
            page.evaluate(self._axe)
            found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
            serious = [
                (one["id"], one["help"], [node["html"][:200] for node in one["nodes"][:3]])
                for one in found
                if one["impact"] in ("serious", "critical")
            ]
            assert not serious, f"{name}, {scheme}: {json.dumps(serious, indent=1)}"
        page.set_viewport_size({"width": 1280, "height": 900})
        page.emulate_media(color_scheme="light")
        assert not self.complaints, f"{name}: {self.complaints}"
        assert not self.elsewhere, f"{name} asked other hosts: {self.elsewhere}"


@contextmanager
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
