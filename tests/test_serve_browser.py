"""Covers: serve/application, serve/command. The page in a real browser: Debian's Chromium, driven by selenium; skipped
where one of them is missing.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
from served_page import open_session, png
from small_run import write_run
from test_serve_search import bomb
from tiny_orbench import write_orbench

from serve.command import bound, server_of
from serve.service import GalleryChoice, Service
from serve.work import Worker
from solver.calibration import Calibration
from solver.search.session import SearchSession
from utils.retrieval.error_rates import Thresholds

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (requirements-dev.txt)")
ActionBuilder = pytest.importorskip("selenium.webdriver.common.actions.action_builder").ActionBuilder
PointerInput = pytest.importorskip("selenium.webdriver.common.actions.pointer_input").PointerInput
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed (.ci/run)")
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1300,1000"
).split()
PATIENCE = 60
Found = TypeVar("Found")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> SearchSession:
    place = tmp_path_factory.mktemp("page")
    data = write_orbench(place / "data", identities=2, test_identities=5, images=2)
    return open_session(write_run(place / "small", data), place / "cache")


@pytest.fixture(scope="module")
def address(session: SearchSession) -> Iterator[str]:
    """A page that is served in a thread of this process."""
    worker, opened = Worker(), bound("127.0.0.1", 0)
    service = Service(session=session, choice=GalleryChoice(), stopping=worker.stopping)
    server = server_of(service, worker, "127.0.0.1")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    # Only the main thread may take signals, which a test has no use for.
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment]
    thread.start()
    worker.submit(service.prepare)
    yield f"http://127.0.0.1:{opened.getsockname()[1]}/"
    server.should_exit = True
    thread.join(30)
    worker.stop()
    opened.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """What a user does with the page, and sees."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser, self.address = browser, address
        browser.get(address)
        self.wait(lambda: self.all("#example-list button"))

    def wait(self, what: Callable[[], Found]) -> Found:
        end = time.monotonic() + PATIENCE
        while not (found := what()):
            assert time.monotonic() < end, self.browser.find_element("css selector", "body").text
            time.sleep(0.05)
        return found

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def ranking(self) -> list[tuple[str, str]]:
        """(number, similarity) of every result."""
        read = (
            "return [...document.querySelectorAll('.hit')].map(hit => [hit.dataset.index, "
            "hit.querySelector('.line').lastChild.textContent])"
        )
        return [tuple(hit) for hit in self.browser.execute_script(read)]

    def changed(self, act: Callable[[], object]) -> list[tuple[str, str]]:
        """Do something and return the ranking that it leads to, which is another one."""
        before = self.ranking()
        act()
        return self.wait(lambda: [] if (found := self.ranking()) == before or self.all("body.busy") else found)

    def click(self, selector: str) -> None:
        """Click what may lie under the bar of the search button."""
        self.browser.execute_script("arguments[0].click()", self.one(selector))

    def search(self) -> None:
        self.wait(self.one("#search").is_enabled)
        self.click("#search")

    def draw(self, part: str, *points: tuple[int, int], kind: str = "mouse") -> None:
        """Draw a line over a pad, from its middle, by pointer events of the browser itself."""
        pad = self.one(f"#canvas-{part}")
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", pad)
        actions = ActionBuilder(self.browser, mouse=PointerInput(kind, kind))
        actions.pointer_action.move_to(pad, *points[0]).pointer_down()
        for point in points[1:]:
            actions.pointer_action.move_to(pad, *point)
        actions.pointer_action.pointer_up()
        actions.perform()

    def ink(self, part: str) -> int:
        """Pixels of a pad that are not white."""
        count = (
            "const pad = document.getElementById(arguments[0]); const data = pad.getContext('2d').getImageData(0, 0, "
            "pad.width, pad.height).data; let ink = 0; for (let place = 0; place < data.length; place += 4) ink += "
            "data[place] + data[place + 1] + data[place + 2] < 700; return ink"
        )
        return self.browser.execute_script(count, f"canvas-{part}")

    def press(self, label: str, part: str = "sk") -> None:
        (button,) = [one for one in self.all(f"[data-part={part}] .tools button") if one.text == label]
        button.click()


@pytest.fixture
def page(browser: Any, address: str) -> Page:
    return Page(browser, address)


def test_a_drawing_and_a_sentence_change_the_ranking(page: Page) -> None:
    page.draw("sk", (0, -100), (0, 100), (40, 0))
    line = page.ink("sk")
    assert line > 100
    drawn = page.changed(page.search)
    assert len(drawn) == 10 - 5, "of two copies of a photograph one is folded"
    page.one("#text").send_keys("a person with a red coat")
    mixed = page.changed(page.search)
    assert {word.text.split(":")[0] for word in page.all(".alone b")} == {"Sketch", "Description"}
    assert "agree with the mix" in page.one("#alone-title").text
    # A pen and a finger draw like a mouse; the eraser, undo and clear take away.
    for kind in ("pen", "touch"):
        before = page.ink("sk")
        page.draw("sk", (-60, -60), (60, 60) if kind == "pen" else (-60, 120), kind=kind)
        assert page.ink("sk") > before
    page.press("Undo")
    page.press("Eraser")
    before = page.ink("sk")
    page.draw("sk", (-60, -60), (60, 60))
    assert page.ink("sk") < before
    page.press("Undo")
    assert page.ink("sk") == before
    assert page.changed(page.search) != mixed
    page.press("Clear")
    assert page.ink("sk") == 0
    page.changed(page.search)
    assert [chip.text for chip in page.all("#asked .chip b")] == ["Description"]


def test_an_example_fills_the_form(page: Page) -> None:
    """So that one of its parts can be changed."""
    buttons = {button.text.splitlines()[-1]: button for button in page.all("#example-list button")}
    words = next(words for words in buttons if "Description" in words and "Infrared" in words)
    example = page.changed(buttons[words].click)
    text = page.wait(lambda: page.one("#text").get_attribute("value"))
    assert text in buttons[words].text
    parts = words.split(" + ")
    mix = page.wait(lambda: page.one("#mix").text).removeprefix("Searches by ").removesuffix(".")
    assert sorted(mix.split(" + ")) == sorted(parts)
    assert len(page.all(".thumb img")) == len(parts) - 1
    box = page.one("#text")
    for words, same in (("a woman in green", False), (text, True)):
        box.clear()
        box.send_keys(words)
        assert (page.changed(page.search) == example) is same


def test_more_like_this_and_back(page: Page) -> None:
    example = page.changed(page.all("#example-list button")[0].click)
    assert page.all(".hit.match") and page.all(".hit.other"), "identities are known"
    second = page.all(".hit")[1]
    like = page.changed(second.find_element("css selector", "button").click)
    assert like[0][0] == example[1][0] and like[0][1] == "1.0000"
    assert "the query itself" in page.all(".hit")[0].text and "Like this picture" in page.one("#asked").text
    assert page.changed(page.one("#back").click) == example
    assert "Not calibrated" in page.one("#verdict").text
    assert all(
        page.browser.execute_script("return [...document.images].map(one => one.complete && one.naturalWidth > 0)")
    )


def test_nobody_is_said_of_others_than_the_query_and_at_the_chosen_rate(
    browser: Any, address: str, session: SearchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    cutoffs = Thresholds(matching={}, identification={0.01: 0.99999, 0.1: -1.0})
    calibration = Calibration(
        file=session.home / "best.calibration.json",
        split="val",
        dataset="orbench",
        thresholds={"RGB": cutoffs, "TEXT": cutoffs},
        gallery=frozenset({"rgb"}),
        images={"RGB": 10.0, "TEXT": 10.0},
    )
    monkeypatch.setattr(session, "calibration", calibration)
    page = Page(browser, address)
    page.one("#text").send_keys("a person with a red coat")
    page.changed(page.search)
    like = page.changed(lambda: page.click(".hit button.small"))
    words = page.one("#verdict").text
    assert like[0][1] == "1.0000" and "Nobody above the threshold (1 % false alarms)" in words
    assert f"The threshold is 1.0000, the most similar picture has {like[1][1]}." in words
    page.browser.execute_script("document.querySelector('#rate').value = '0.1'")
    page.changed(page.all(".hit button.small")[1].click)
    assert "pictures above the threshold (10 % false alarms)" in page.one("#verdict").text


def test_the_keyboard_is_enough(page: Page) -> None:
    keys = webdriver.Keys
    page.one("#text").send_keys("a person with a green dress", keys.CONTROL, keys.ENTER)
    page.wait(lambda: page.all(".hit"))
    focus = "return document.activeElement.textContent"
    page.browser.execute_script("document.querySelector('.hit button').focus()")
    assert page.browser.execute_script(focus) == "More like this"
    page.changed(lambda: webdriver.ActionChains(page.browser).send_keys(keys.ENTER).perform())
    page.wait(lambda: page.one("#back").is_displayed())
    page.browser.execute_script("document.querySelector('#text').focus()")
    webdriver.ActionChains(page.browser).send_keys(keys.TAB).perform()
    assert page.browser.execute_script(focus).startswith("Sketch")


def test_hostile_files_are_refused_and_the_page_goes_on(page: Page, tmp_path: Path) -> None:
    hostile = {
        "note.png": (b"no image", "note.png"),
        "page.png": (b"<!DOCTYPE html><script>document.title = 'taken'</script>", "no image"),
        "huge.png": (bomb(30_000, 30_000), "pixels"),
        "<img src=x onerror=document.title='taken'>.png": (b"no image", "no image"),
    }
    field = page.one("#file-sk")
    for name, (content, words) in hostile.items():
        place = tmp_path / name.replace("/", "_")
        place.write_bytes(content)
        field.send_keys(str(place))
        page.search()
        page.wait(lambda words=words: words in page.one("#status").text)  # type: ignore[misc]
        assert "bad" in page.one("#status").get_attribute("class")
        page.click("[data-part=sk] .thumb button")
    good = tmp_path / "<b>good.png"
    good.write_bytes(png(3))
    field.send_keys(str(good))
    page.changed(page.search)
    assert page.browser.title == "AnyReID search" and not page.all("#asked b b")


def test_a_caption_is_text_and_never_markup(page: Page) -> None:
    page.one("#text").send_keys("<img src=x onerror=\"document.title='taken'\"> <b id=bold>coat</b>")
    page.changed(page.search)
    assert (
        "<b id=bold>coat</b>" in page.one("#asked").text
        and not page.all("#bold")
        and page.browser.title == "AnyReID search"
    )


def test_a_photo_stands_alone_and_the_page_says_so(page: Page, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(png(4))
    page.one("#file-rgb").send_keys(str(tmp_path / "photo.png"))
    assert page.one("#search").is_enabled()
    page.one("#text").send_keys("coat")
    assert "A photo stands alone" in page.one("#mix").text and not page.one("#search").is_enabled()
    page.one("#clear").click()
    assert not page.one("#text").get_attribute("value") and not page.all("[data-part=rgb] .thumb")


def test_a_list_is_saved_as_infer_writes_it(page: Page, tmp_path: Path) -> None:
    page.changed(page.all("#example-list button")[0].click)
    page.browser.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for kind in ("list", "html", "png"):
        page.click(f"#downloads [data-format={kind}]")
        place = tmp_path / f"retrieval.{'json' if kind == 'list' else kind}"
        page.wait(lambda place=place: place.exists() and place.stat().st_size)  # type: ignore[misc]
    document = json.loads((tmp_path / "retrieval.json").read_text(encoding="utf-8"))
    similarities = [f"{result['similarity']:.4f}" for result in document["queries"][0]["results"]]
    assert similarities == [similarity for _, similarity in page.ranking()]


def test_it_is_read_on_a_phone(page: Page) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.browser.execute_script("document.querySelector('#example-list button').click()")
        page.wait(lambda: page.all(".hit"))
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_leaves_this_machine(page: Page, address: str) -> None:
    """Of everything that the tests before this one asked for; and no policy was broken."""
    page.changed(page.all("#example-list button")[1].click)
    asked = []
    for line in page.browser.get_log("performance"):
        message = json.loads(line["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    # The browser's own pages (chrome:, chrome-untrusted:, data:) and the page's previews (blob:) go nowhere.
    own = ("chrome:", "chrome-untrusted:", "data:", "blob:")
    places = {urlsplit(url).netloc for url in asked if not url.startswith(own)}
    assert places == {urlsplit(address).netloc} and len(asked) > 30
    said = [line for line in page.browser.get_log("browser") if "favicon" not in line["message"]]
    refused = [line for line in said if "Content Security Policy" in line["message"] or line["source"] == "javascript"]
    assert not refused
