"""The site as `make docs` built it, opened in headless Chromium: links, telephones, nothing from the network.

Skipped where the site is not built, or no browser is here.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(__file__).parent.parent / "build" / "docs"
PAGES = sorted(path for path in SITE.rglob("*.html") if "_static" not in path.parts) if SITE.is_dir() else []
TELEPHONE = {"width": 380, "height": 800}

CUT_OFF = """width => {
    const scrolls = e => e && e.tagName !== "ARTICLE"
        && (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
    return [...document.querySelectorAll("article *")]
        .filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e))
        .map(e => e.outerHTML.slice(0, 200));
}"""
"""What reaches beyond the screen and lies in nothing within the text that scrolls by itself."""

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.skipif(not PAGES, reason="the site is not built: make docs"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def name_of(page: Path) -> str:
    return str(page.relative_to(SITE))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_page_needs_no_network_and_does_not_scroll_sideways(path: Path, browser: Any) -> None:
    page = browser.new_page(viewport=TELEPHONE)
    requested: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri(), wait_until="networkidle")
    assert [url for url in requested if not url.startswith(("file:", "data:", "blob:"))] == []
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= TELEPHONE["width"]
    assert page.evaluate(CUT_OFF, TELEPHONE["width"]) == []
    formulas = "[...document.querySelectorAll('div.math, span.math')].filter(e => !e.querySelector('mjx-container'))"
    assert page.evaluate(f"{formulas}.map(e => e.textContent)") == []  # every formula is set
    page.close()


def test_no_link_within_the_site_is_broken(browser: Any) -> None:
    page = browser.new_page(java_script_enabled=False)
    links: list[tuple[Path, str]] = []
    anchors: dict[Path, set[str]] = {}
    for path in PAGES:
        page.goto(path.as_uri())
        links += [(path, url) for url in page.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")]
        anchors[path] = set(page.eval_on_selector_all("[id]", "all => all.map(e => e.id)"))
    broken = []
    for path, url in links:
        parts = urlsplit(url)
        target = Path(unquote(parts.path))
        fragment = unquote(parts.fragment)
        if parts.scheme == "file" and not (
            target.is_file() and (not fragment or target not in anchors or fragment in anchors[target])
        ):
            broken.append((name_of(path), url))
    assert broken == []
    assert len(links) > len(PAGES)
