"""The site on a phone: nothing is cut, nothing is broken, and what scrolls to the side shows so."""

from __future__ import annotations

import fcntl
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from .test_browser import in_chromium, profile

pytest.importorskip("furo", reason="needs the extra [docs]")

# To build the site takes a while, though no server.
pytestmark = [pytest.mark.server, pytest.mark.unmeasured, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
LOOK = """
const width = document.documentElement.clientWidth;
const seen = {width, cut: [], broken: [], unshown: []};
const isScrolled = (element) => ["auto", "scroll"].includes(getComputedStyle(element).overflowX)
  && element.scrollWidth > element.clientWidth + 1;
const told = (element) => `${element.tagName}: ${element.textContent.trim().slice(0, 60)}`;
for (const element of document.querySelectorAll("article *")) {
  if (isScrolled(element) && getComputedStyle(element).backgroundImage === "none")
    seen.unshown.push(told(element));
  const box = element.getBoundingClientRect();
  if (box.width === 0 || box.right <= width + 1) continue;
  let around = element.parentElement;
  while (around.tagName !== "ARTICLE" && !isScrolled(around)) around = around.parentElement;
  if (around.tagName === "ARTICLE") seen.cut.push(told(element));
}
for (const word of document.querySelectorAll("article code .pre, article .sig .pre")) {
  const range = document.createRange();
  range.selectNodeContents(word);
  const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
  if (lines.size > 1) seen.broken.push(word.textContent);
}
return seen;
"""


@pytest.fixture(scope="module")
def site() -> Path:
    """The folder with the site, as `make docs` builds it: pages that did not change stay."""
    folder = ROOT / "build" / "docs"
    folder.mkdir(parents=True, exist_ok=True)
    build = [sys.executable, "-m", "sphinx", "-W", "--quiet", "-b", "html", "docs", str(folder)]
    with (folder.parent / "docs.lock").open("w") as lock:  # Another process may need it, too.
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(build, cwd=ROOT, check=True)
    return folder


def look(browser: webdriver.Chrome, page: Path) -> dict[str, Any]:
    browser.get(page.as_uri())
    seen: dict[str, Any] = browser.execute_script(LOOK)
    return seen


def pages_of(site: Path) -> list[Path]:
    """Return the pages; of the modules' source, which is laid out by one rule, the longest."""
    pages = [page for page in site.rglob("*.html") if "_modules" not in page.parts]
    sources = site.glob("_modules/*/**/*.html")
    return [*pages, max(sources, key=lambda page: page.stat().st_size)]


@in_chromium
def test_every_page_fits_on_a_phone(site: Path, tmp_path: Path) -> None:
    right = {"width": PHONE["width"], "cut": [], "broken": [], "unshown": []}
    with profile(tmp_path) as browser:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        seen = {str(page.relative_to(site)): look(browser, page) for page in pages_of(site)}
    assert len(seen) > 30
    assert {page: found for page, found in seen.items() if found != right} == {}


SCROLLED = """
return [...document.querySelectorAll("article *")]
  .filter((element) => !element.closest("details:not([open])"))
  .filter((element) => ["auto", "scroll"].includes(getComputedStyle(element).overflowX)
    && element.scrollWidth > element.clientWidth + 1)
  .map((element) => `${element.tagName}: ${element.textContent.trim().slice(0, 60)}`);
"""


@in_chromium
def test_the_figures_are_read_on_a_phone_without_scrolling_to_the_side(
    site: Path, tmp_path: Path
) -> None:
    with profile(tmp_path) as browser:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        browser.get((site / "benchmarks.html").as_uri())
        assert browser.execute_script("return document.querySelectorAll('details').length") > 5
        assert browser.execute_script(SCROLLED) == []


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        ("MongoSessionInterface(settings)", 1),
        ('config.include("mongosession_wsgi.pyramid")', 2),
        ("test_store.py::test_neither_an_id_nor_garbage_opens_a_session", 2),
        ("a_name_without_any_joint_that_is_longer_than_a_line", 1),
    ],
)
def test_a_word_of_code_is_cut_at_its_joints(word: str, pieces: int) -> None:
    sys.path.append(str(ROOT / "docs" / "_ext"))
    try:
        whole_names = importlib.import_module("whole_names")
    finally:
        sys.path.pop()
    html = whole_names._WORD.sub(whole_names.cut, f'<span class="pre">{word}</span>')
    assert html.count('<span class="pre">') == pieces
    assert html.count("<wbr>") == pieces - 1
    assert re.sub("<[^>]+>", "", html) == word


def test_pages_from_outside_of_the_docs_are_on_the_site(site: Path) -> None:
    for page, words in {
        "changelog": "Keep a Changelog",
        "contributing": "See a new test fail once",
        "reporting": "What to expect",
        "licence": "Permission is hereby granted",
    }.items():
        assert words in (site / f"{page}.html").read_text()
        assert f'href="{page}.html"' in (site / "index.html").read_text()
