"""A real Chromium for pages that the program writes, and what every such page owes its reader."""

import shutil
from contextlib import contextmanager

from playwright.sync_api import sync_playwright


@contextmanager
def browser():
    """Debian's Chromium, without a window."""
    path = shutil.which("chromium")
    assert path, "There is no chromium; install Debian's package chromium."
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def page(opened, path, width=1400, height=900, within=None, **context):
    """A page of a file, which must not complain, ask for anything or leave a picture empty.

    Args:
        opened: Of `browser`.
        path: An HTML file.
        width: Of the window, in pixels.
        height: Of the window.
        within: A folder whose other files the page may ask for; null for a page that is one file.
        context: More for the browser's context, such as color_scheme="dark".
    """
    made = opened.new_context(viewport={"width": width, "height": height}, **context)
    found, complaints, asked = made.new_page(), [], []
    found.on("console", lambda message: complaints.append(message.text))
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("request", lambda request: asked.append(request.url))
    try:
        found.goto(path.resolve().as_uri())
        yield found
        inside = ("data:", "blob:", (within or path).resolve().as_uri())
        assert not complaints, complaints
        assert not [url for url in asked if not url.startswith(inside)], asked
        assert found.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        wide = found.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{wide} px wider than the window"
    finally:
        made.close()
