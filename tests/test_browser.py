"""The shop in a real browser: what a person does, and what the browser makes of the cookie."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from .test_examples import SERVERS, served

pytestmark = [pytest.mark.server, pytest.mark.unmeasured]

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
in_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"
)
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def url(mongodb_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the Bottle shop, under gunicorn."""
    log = tmp_path_factory.mktemp("shop") / "log"
    with served([*SERVERS["gunicorn"], "bottle_shop:app"], mongodb_uri, log) as url:
        yield url


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with profile(tmp_path) as browser:
        yield browser


@contextmanager
def profile(folder: Path, *arguments: str) -> Iterator[webdriver.Chrome]:
    """Run a browser that keeps its cookies and all else in `folder`."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in [*ARGUMENTS, f"--user-data-dir={folder}", *arguments]:
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


def text(browser: webdriver.Chrome, selector: str) -> str:
    return browser.find_element(By.CSS_SELECTOR, selector).text


def cart(browser: webdriver.Chrome) -> dict[str, str]:
    lines = browser.find_elements(By.CSS_SELECTOR, "[data-item]")
    return {
        line.get_attribute("data-item") or "": line.get_attribute("data-count") or ""
        for line in lines
    }


def visits(browser: webdriver.Chrome) -> int:
    return int(text(browser, "#visits"))


def submit(browser: webdriver.Chrome, selector: str) -> None:
    """Press a button by the keyboard, and wait for the page that it leads to."""
    before = browser.execute_script("return performance.timeOrigin")
    browser.find_element(By.CSS_SELECTOR, selector).send_keys(Keys.ENTER)
    another_page = f"return performance.timeOrigin != {before} && document.readyState == 'complete'"
    WebDriverWait(browser, 20).until(lambda _: browser.execute_script(another_page))


@in_chromium
def test_a_person_shops_logs_in_and_logs_out(chromium: webdriver.Chrome, url: str) -> None:
    chromium.get(url)
    assert visits(chromium) == 1
    anonymous = chromium.get_cookie("mongosession") or {}
    assert (anonymous["httpOnly"], anonymous["sameSite"]) == (True, "Lax")
    assert chromium.execute_script("return document.cookie") == ""
    for tea in ("Oolong", "Assam", "Oolong"):
        submit(chromium, f"button[value='{tea}']")
    assert cart(chromium) == {"Oolong": "2", "Assam": "1"}

    chromium.find_element(By.ID, "name").send_keys("Alice")
    submit(chromium, "form[action='/login'] button")
    assert text(chromium, "#owner") == "Alice"
    assert cart(chromium) == {"Oolong": "2", "Assam": "1"}
    mine = chromium.get_cookie("mongosession") or {}
    assert mine["value"] != anonymous["value"]

    submit(chromium, "form[action='/logout'] button")
    assert (visits(chromium), cart(chromium)) == (1, {})
    chromium.add_cookie(mine)
    chromium.get(url)
    assert cart(chromium) == {}
    assert not chromium.find_elements(By.ID, "owner")


@in_chromium
def test_on_a_phone_nothing_is_cut_and_what_was_added_is_told(
    chromium: webdriver.Chrome, mongodb_uri: str, tmp_path: Path
) -> None:
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True},
    )
    with served([*SERVERS["gunicorn"], "hood:app"], mongodb_uri, tmp_path / "log") as url:
        chromium.get(url)
        submit(chromium, "button[value='Earl Grey']")
        assert text(chromium, "[role='status']").startswith("Earl Grey is in your cart.")
        notice = chromium.find_element(By.CSS_SELECTOR, "[role='status']").rect
        assert notice["y"] + notice["height"] < 844, "it is seen without scrolling"
        assert cut(chromium) == []
        chromium.find_element(By.ID, "name").send_keys("Wolfeschlegelsteinhausenbergerdorff")
        for form in ("/login", "/promises/two-tabs", "/promises/double-click"):
            submit(chromium, f"form[action='{form}'] button")
            assert cut(chromium) == []
        for path in ("/devices", "/nothing"):
            chromium.get(url + path)
            assert cut(chromium) == []
        chromium.get(url)
        submit(chromium, "form[action='/promises/another-device'] button")
        assert cut(chromium) == []


def cut(browser: webdriver.Chrome) -> list[str]:
    """Return the elements that reach beyond the right edge of the window, or hide a part."""
    return browser.execute_script("""
        return [...document.querySelectorAll("body *")].filter(element => {
          const {right, width} = element.getBoundingClientRect();
          const isHidden = element.closest(".unseen, style") || !width;
          return !isHidden && (right > innerWidth || element.scrollWidth > element.clientWidth + 1
            && getComputedStyle(element).display != "inline");
        }).map(element => element.outerHTML.slice(0, 120))
    """)
