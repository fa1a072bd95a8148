"""The page in a real browser (Debian's Chromium), against the real API."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from starlette.middleware import Middleware

from raygen.export import export_run
from serve.api import build_api
from serve.models import Models
from serve.security import Guard, Security, SecurityArgs
from serve.videos import Videos
from tests.served import answering
from tests.small_runs import CLASSES, make_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium (Debian's package) on this machine"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None,
        reason="no playwright: pip install '.[test]'",
    ),
]
# It shall ask nobody but the server under test.
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
PLAYING = "() => document.querySelectorAll('#clips video').length === 8"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    export_run(make_run(str(folder / "runs")), str(folder / "small"))
    return folder / "small"


@pytest.fixture(scope="module")
def url(exported: Path) -> Iterator[str]:
    with served(exported) as url:
        yield url


@contextmanager
def served(export: Path, *middleware: Middleware) -> Iterator[str]:
    """The API over an export, without Ray, on a free port."""
    models = Models(str(export), "cpu", "plain")
    with answering(build_api(models, Videos(export.with_name("videos")), middleware)) as url:
        yield f"{url}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page with its first eight clips; whatever goes wrong in its scripts fails the test."""
    context = browser.new_context(accept_downloads=True)
    context.set_default_timeout(60_000)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.wait_for_function(PLAYING)
    yield page
    context.close()
    assert not errors


def seeds_shown(page: Page) -> list[str]:
    return [each.inner_text() for each in page.locator("#clips figcaption > span").all()]


def test_clips_play(page: Page) -> None:
    page.wait_for_function(
        "() => [...document.querySelectorAll('video')].every((each) => each.currentTime > 0.1)"
    )
    page.get_by_role("button", name="Pause").click()
    stopped = page.evaluate("() => document.querySelector('video').currentTime")
    page.wait_for_timeout(400)
    assert page.evaluate("() => document.querySelector('video').currentTime") == stopped


def test_a_class_is_chosen_and_seeds_are_walked_by_keyboard_alone(page: Page) -> None:
    page.get_by_label("Class", exact=True).focus()
    page.keyboard.type("wave")
    page.get_by_label("First seed").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("40")
    page.keyboard.press("Enter")
    page.get_by_text("wave, seed 47").wait_for()
    assert seeds_shown(page) == [f"wave, seed {k}" for k in range(40, 48)]
    page.get_by_role("button", name="Later seeds").focus()
    page.keyboard.press("Enter")
    page.get_by_text("wave, seed 55").wait_for()
    assert "seeds 48 to 55" in page.get_by_role("status").inner_text()


def test_the_slider_leads_from_one_clip_to_the_other(page: Page, url: str) -> None:
    page.get_by_label("From class").select_option(CLASSES[0])
    page.get_by_label("To class").select_option(CLASSES[1])
    page.get_by_role("button", name="Pause").click()  # the slider alone changes the picture
    page.get_by_role("button", name="Interpolate").click()
    page.get_by_label("Place between them").wait_for()

    def picture() -> list[int]:
        drawn: list[int] = page.evaluate(
            "() => { const c = document.getElementById('screen');"
            " return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }"
        )
        return drawn

    def first_frame(seed: int, name: str) -> list[int]:
        path = f"{url}v1/models/best/clips/{seed}?class={name}&format=npy"
        clip = np.load(io.BytesIO(page.request.get(path).body()))[0]
        opaque = np.full((*clip.shape[1:3], 1), 255)
        return [int(value) for value in np.concatenate([clip[0], opaque], -1).ravel()]

    assert picture() == first_frame(0, CLASSES[0])
    slider = page.get_by_label("Place between them")
    slider.focus()
    page.keyboard.press("End")
    assert page.locator("#place-shown").inner_text() == "100%"
    assert picture() == first_frame(1, CLASSES[1])


def test_a_clip_is_downloaded_and_copied_as_a_command(page: Page, tmp_path: Path) -> None:
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").first.click()
    download.value.save_as(tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").read_bytes()[4:8] == b"ftyp"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy as curl").first.click()
    page.get_by_text("The command is on the clipboard").wait_for()
    assert page.evaluate("() => navigator.clipboard.readText()").startswith("curl -L -o ")


def test_what_the_server_refuses_is_said_kindly(page: Page) -> None:
    page.get_by_label("First seed").fill("5")
    # What a user cannot do here, but a model swapped meanwhile does: the class is gone.
    page.evaluate("() => { document.getElementById('class').options[1].value = 'wavy'; }")
    page.get_by_label("Class", exact=True).select_option(index=1)
    page.get_by_role("button", name="Generate").click()
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "did you mean wave?" in alert.inner_text()


def test_a_token_is_asked_for_once(browser: Browser, exported: Path) -> None:
    line = f"alice {hashlib.sha256(b'rg_secret').hexdigest()}"
    guard = Guard(SecurityArgs(token_lines=line))
    with served(exported, Middleware(Security, guard=lambda: guard)) as url:
        page = browser.new_page()
        page.goto(url)
        page.get_by_role("alert").wait_for()
        page.get_by_label("This server asks for a token").fill("rg_wrong")
        page.get_by_role("button", name="Use it").click()
        page.get_by_label("This server asks for a token").fill("rg_secret")
        page.get_by_role("button", name="Use it").click()
        page.wait_for_function(PLAYING)
        assert page.get_by_role("alert").is_hidden()
        page.reload()
        page.wait_for_function(PLAYING)
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_nothing_and_nothing_is_cut_off(
    page: Page, scheme: str, width: int, tmp_path: Path
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.set_viewport_size({"width": width, "height": 800})
    if scheme == "dark":
        page.get_by_role("button", name="Dark").click()
    page.get_by_role("button", name="Interpolate").click()
    page.get_by_label("Place between them").wait_for()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    with Image.open(tmp_path / "page.png") as image:
        corner = image.convert("L").getpixel((1, image.height - 1))
    assert isinstance(corner, int)
    assert (corner > 128) == (scheme == "light")
