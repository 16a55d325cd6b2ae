"""The explorer's page in a headless browser: drawing, dreaming, completing, comparing, by pointer, keys and thumb."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from heads import environment, free_ports
from registered import register

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
NAME = "rws-explored"
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    # Playwright's loop closes its child's pipes after pytest has looked.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def address(registry_home: Path) -> Iterator[str]:
    """The page of the champion, served by the command."""
    home = registry_home
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("RWS_HOME", str(home))
        for seed in range(2):
            register(home, NAME, seed)
        register(home, NAME, 5, dim=9)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "rws_ray.explore", f"models:/{NAME}@champion", "--port", str(port), "--no-browser"]
    settings = environment(RWS_HOME=str(home), PYTHONPATH=str(ROOT))
    process = subprocess.Popen(command, env=settings, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "is shown at" in process.stdout.readline()
    where = f"http://127.0.0.1:{port}"
    while not answers(where):
        assert process.poll() is None
        time.sleep(0.05)
    yield where
    process.terminate()
    process.communicate(timeout=30)


def answers(where: str) -> bool:
    try:
        return urllib.request.urlopen(where, timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the page and waits until it has a model; any word on its console is a failure."""
    contexts, told = [], []

    def open_it(**settings):
        contexts.append(browser.new_context(bypass_csp=True, **settings))  # the waits below evaluate strings
        page = contexts[-1].new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(address)
        page.wait_for_selector("body[data-ready=yes]")
        page.wait_for_function("document.querySelector('#likelihood').textContent.includes('±')")
        return page

    yield open_it
    for each in contexts:
        each.close()
    assert told == []


def pixels(page, selector: str) -> str:
    """What a canvas shows."""
    return page.eval_on_selector(selector, "canvas => canvas.toDataURL()")


def likelihood(page) -> str:
    return page.text_content("#likelihood")


def changed(page, selector: str, before: str) -> None:
    page.wait_for_function("([id, text]) => document.querySelector(id).textContent !== text", arg=[selector, before])


def test_it_opens_with_an_example_its_likelihood_and_a_dream(open_page):
    page = open_page()
    assert page.text_content("#facts") == "64 units (8 × 8), hidden layers of 8, 4"
    assert "nats (K = 1000)" in likelihood(page)
    assert page.locator("#posterior canvas").count() == 2
    assert page.locator("#curve polyline").get_attribute("points").count(",") == 10
    assert page.locator("#dreams canvas").count() == 6


def test_a_stroke_of_the_pointer_is_drawn_and_scored(open_page):
    page = open_page()
    page.click("#clear")
    empty, before = pixels(page, "#drawing"), likelihood(page)
    page.wait_for_function("!document.body.ariaBusy || document.body.ariaBusy === 'false'")
    box = page.locator("#drawing").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 20, steps=12)
    page.mouse.up()
    assert pixels(page, "#drawing") != empty
    changed(page, "#likelihood", before)


def test_everything_can_be_done_by_keys(open_page):
    page = open_page()
    page.focus("#drawing")
    before, seen = pixels(page, "#drawing"), likelihood(page)
    for key in ("ArrowRight", "ArrowDown", "Space"):
        page.keyboard.press(key)
    assert pixels(page, "#drawing") != before
    changed(page, "#likelihood", seen)
    reached = set()
    page.focus("#model")
    for _ in range(20):
        reached.add(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    assert reached >= {
        "model", "drawing", "example", "clear", "layer", "units", "redraw", "dream", "from-drawing", "half", "complete",
        "other", "compare",
    }  # fmt: skip
    page.focus("#units")
    units, dreams = pixels(page, "#units"), pixels(page, "#dreams canvas")
    page.keyboard.press("Space")
    assert pixels(page, "#units") != units
    page.wait_for_function(
        "before => document.querySelector('#dreams canvas').toDataURL() !== before", arg=dreams
    )  # units that are switched are dreamt from


def test_one_dreams_from_any_layer(open_page):
    page = open_page()
    for layer, width in ((1, 8), (2, 4)):
        page.select_option("#layer", str(layer))
        page.wait_for_function("width => document.querySelector('#units').width >= width", arg=width)
        dreams = pixels(page, "#dreams canvas")
        page.click("#redraw")
        page.wait_for_function("before => document.querySelector('#dreams canvas').toDataURL() !== before", arg=dreams)
    page.click("#from-drawing")
    page.wait_for_function("!document.body.ariaBusy || document.body.ariaBusy === 'false'")
    assert page.text_content("#message") == ""


def test_half_an_image_is_completed(open_page):
    page = open_page()
    page.select_option("#half", "left")
    page.click("#complete")
    page.wait_for_selector("#completions canvas")
    assert page.locator("#completions canvas").count() == 6


def test_two_registered_models_are_compared_and_those_of_other_widths_are_refused(open_page):
    page = open_page()
    page.select_option("#other", f"models:/{NAME}/2")
    page.click("#compare")
    page.wait_for_selector("#comparison tbody tr:nth-child(2)")
    assert [row.text_content() for row in page.locator("#comparison tbody tr td:first-child").all()] == [
        f"models:/{NAME}/1", f"models:/{NAME}/2",
    ]  # fmt: skip
    assert "nats on this drawing" in page.text_content("#difference")
    page.select_option("#other", f"models:/{NAME}/3")
    page.click("#compare")
    page.wait_for_function("document.querySelector('#message').textContent.includes('cannot be compared')")
    page.select_option("#model", f"models:/{NAME}/3")
    page.wait_for_function("document.querySelector('#facts').textContent.startsWith('9 units')")


def test_it_fits_a_phone_and_takes_a_thumb(open_page):
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.select_option("#other", f"models:/{NAME}/2")
    page.click("#compare")
    page.wait_for_selector("#comparison tbody tr:nth-child(2)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    table, frame = (page.locator(each).bounding_box() for each in ("#comparison", "section:has(#comparison)"))
    assert table["x"] + table["width"] <= frame["x"] + frame["width"]
    before = pixels(page, "#drawing")
    page.tap("#drawing", position={"x": 40, "y": 40})
    assert pixels(page, "#drawing") != before


def test_other_names_than_this_machines_are_refused(address):
    request = urllib.request.Request(f"{address}/api/models", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=10)
