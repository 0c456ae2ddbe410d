"""The site that `make docs` builds: whole, without a warning, and nothing in it from elsewhere."""

import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from browsing import browser, page

import robustguide

pytestmark = pytest.mark.check

ROOT = Path(__file__).parents[1]
MODULES = ("robustguide.interfaces", "robustguide.specification", "robustguide.files")
SHOWN = (
    "index.html",
    "theory.html",
    "configs.html",
    "calibration.html",
    "adding-a-backbone.html",
    "api/robustguide.guidance.html",
    "api/robustguide.samplers.html",
)
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}
LINKED = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "manifest"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that MkDocs built, in a process of its own, as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    # not --quiet, which silences warnings, and so hides them from --strict
    words = ["mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = (done.stdout + done.stderr).splitlines()
    assert told and all(line.startswith("INFO ") for line in told), told
    return folder


class Elements(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, path):
        super().__init__()
        self.found = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def all(self, tag):
        return [attributes for found, attributes in self.found if found == tag]


def navigation(entry):
    """Sources of the pages that an entry of the navigation holds."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [name for part in parts for name in navigation(part)]


def packages():
    """All packages of robustguide by their names, imported, and its public modules."""
    walked = pkgutil.walk_packages(robustguide.__path__, "robustguide.")
    names = ["robustguide", *(each.name for each in walked if each.ispkg), *MODULES]
    return {name: importlib.import_module(name) for name in names}


def test_every_document_is_in_the_navigation(site):
    nav = navigation(yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.SafeLoader)["nav"])
    assert sorted(nav) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    linked = {each.get("href") for each in Elements(site / "index.html").all("a")}
    for name in nav:
        built = "index.html" if name == "start-here.md" else f"{name[:-3]}.html"
        assert (site / built).exists() and linked & {built, "./" + built, "."}, name


def test_every_package_has_its_page(site):
    linked = {each.get("href") for each in Elements(site / "index.html").all("a")}
    built = {path.name for path in (site / "api").glob("*.html")}
    assert built == {f"{name}.html" for name in packages()}
    assert {f"api/{name}" for name in built} <= linked


@pytest.mark.parametrize("name", sorted(packages()))
def test_a_page_tells_of_everything_that_its_package_exports(site, name):
    module = packages()[name]
    ids = {each["id"] for _, each in Elements(site / f"api/{name}.html").found if "id" in each}
    found = [(each, getattr(module, each)) for each in getattr(module, "__all__", ())]
    documented = [
        (each, f"{it.__module__}.{it.__qualname__}")
        for each, it in found
        if (inspect.isclass(it) or inspect.isfunction(it)) and it.__doc__
    ]
    missing = [each for each, own in documented if not {f"{name}.{each}", own} & ids]
    assert not missing


def outside(attribute):
    """Whether an address leads to another host."""
    return re.match(r"(?:[a-z][a-z0-9+.-]*:)?//", attribute.strip(), re.IGNORECASE)


def test_addresses_are_told_apart():
    assert all(map(outside, ("https://a.b/c.js", "//a.b/c.css", " HTTP://a.b", "ws://a")))
    assert not any(
        map(outside, ("assets/a.js", "../a.css", "data:image/png;base64,//8", "#a", ""))
    )


def test_nothing_is_loaded_from_elsewhere(site):
    pages, sheets = sorted(site.rglob("*.html")), sorted(site.rglob("*.css"))
    assert len(pages) > 30 and sheets
    for path in pages:
        elements = Elements(path)
        loaded = [
            each.get(name, "") for tag, name in LOADING.items() for each in elements.all(tag)
        ]
        for link in elements.all("link"):
            if LINKED & set(link.get("rel", "").split()):
                loaded.append(link.get("href", ""))
        loaded += [part for each in elements.all("img") for part in each.get("srcset", "").split()]
        assert not list(filter(outside, loaded)), path
    for path in [*sheets, *pages]:
        asked = re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')\s]+)", path.read_text())
        assert not list(filter(outside, asked)), path


def test_what_does_not_belong_is_not_copied(site):
    assert not list(site.rglob("*.py")) and not (site / "replication").exists()
    assert not list(site.rglob("plan.yaml")) and (site / "images/demo.png").exists()


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("name", SHOWN)
def test_a_page_in_a_browser(site, chromium, name, width, scheme):
    """From the disk; `page` looks for complaints, for requests, and for what is too wide."""
    with page(chromium, site / name, width=width, within=site, color_scheme=scheme) as opened:
        assert opened.locator("h1").count() == 1
        paper = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        red, green, blue = map(int, re.findall(r"\d+", paper)[:3])
        assert (red + green + blue > 384) == (scheme == "light")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("ClassifierGuidance", "api/robustguide.guidance.html"),
        ("Krippendorff", "survey.html"),
    ],
)
def test_the_search_finds_a_class_and_a_page(site, chromium, words, wanted):
    with page(chromium, site / "index.html", within=site) as opened:
        opened.locator("input.md-search__input").click()
        opened.keyboard.type(words)
        result = opened.locator(".md-search-result__item a").first
        result.wait_for()
        assert result.get_attribute("href").partition("?")[0].endswith(wanted)
