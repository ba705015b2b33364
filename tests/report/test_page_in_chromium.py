"""The page in a real browser: it draws, sorts, copies, works by keyboard, offline, on a phone, in the dark, for screen readers."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

# Nothing of a browser's own business on the network, and no sandbox, which containers and root do not give.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
DARK: dict[str, Any] = {**DESKTOP, "color_scheme": "dark"}


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium without a head."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(NAMES)} is here: install one, on Debian with apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(FLAGS), headless=True)
        yield opened
        opened.close()


class Opened:
    """The page as a reader has it, with all that the console said and all that it tried to fetch."""

    def __init__(self, browser: "Browser", path: Path, **options: Any) -> None:
        self.context = browser.new_context(offline=True, permissions=["clipboard-read", "clipboard-write"], **options)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.fetched: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-drawn]", state="attached")


@pytest.fixture
def opened(browser: "Browser", page: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    found = Opened(browser, page, **getattr(request, "param", DESKTOP))
    yield found
    found.context.close()


@pytest.mark.parametrize("opened", [DESKTOP, PHONE, DARK], indirect=True, ids=["desktop", "phone", "dark"])
def test_every_figure_is_drawn_offline_and_nothing_is_wrong(opened: Opened, page: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    drawn = opened.page.locator("[data-spec] svg").count()
    assert drawn == opened.page.locator("[data-spec]").count() > 8
    assert opened.page.locator("html").get_attribute("data-drawn") == "true"
    assert opened.said == []
    assert [url for url in opened.fetched if not url.startswith("data:")] == [page.as_uri()]
    # No stranger's script ran.
    assert opened.page.evaluate("window.hacked") is None
    # A page wider than the screen would scroll sideways; tables do so within themselves.
    assert opened.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert opened.page.evaluate(
        "[...document.querySelectorAll('[data-spec] svg')].every(svg => svg.clientWidth <= svg.parentNode.clientWidth)"
    )
    for folded in opened.page.locator("details").all():
        folded.evaluate("element => element.open = true")
    violations = Axe().run(opened.page).response["violations"]
    assert not [f"{each['impact']} {each['id']}: {each['nodes'][0]['html']}" for each in violations]


def figures(table: "Locator", column: int) -> list[float]:
    """The numbers of a column, from top to bottom."""
    return [float(text.split()[0]) for text in table.locator(f"tbody tr > :nth-child({column})").all_inner_texts()]


def test_table_sorts_by_click_both_ways_and_says_so(opened: Opened) -> None:
    table = opened.page.locator("table", has_text="over openvino fp32").first
    head = table.locator("thead button", has_text="found")
    before = figures(table, 2)
    head.click()
    after = figures(table, 2)
    assert after == sorted(before)
    assert table.locator("[aria-sort]").get_attribute("aria-sort") == "ascending"
    assert "ascending" in opened.page.locator("#said").inner_text()
    head.click()
    assert figures(table, 2) == sorted(before, reverse=True)
    assert table.locator("[aria-sort]").get_attribute("aria-sort") == "descending"


def test_keyboard_reaches_the_report_sorts_and_copies(opened: Opened) -> None:
    keyboard = opened.page.keyboard
    keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.className") == "skip"
    keyboard.press("Enter")
    assert opened.page.evaluate("document.activeElement.id") == "main"
    reached: list[str] = []
    for _ in range(12):
        keyboard.press("Tab")
        reached.append(opened.page.evaluate("document.activeElement.textContent"))
        if opened.page.evaluate("document.activeElement.matches('thead button')"):
            break
    assert opened.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", reached
    keyboard.press("Enter")
    assert "Sorted by model" in opened.page.locator("#said").inner_text()


def test_copy_puts_the_command_on_the_clipboard(opened: Opened) -> None:
    from playwright.sync_api import expect

    holder = opened.page.locator("section.record .command").first
    holder.locator("button").click()
    expect(opened.page.locator("#said")).to_have_text("Command copied")
    assert opened.page.evaluate("navigator.clipboard.readText()") == holder.locator("code").inner_text()
    assert opened.page.evaluate("navigator.clipboard.readText()").startswith("optbench apply recipes/gte-large.yaml")


def test_command_with_a_strangers_text_is_one_quoted_word(opened: Opened) -> None:
    import shlex

    words = shlex.split(opened.page.locator("section.record").nth(1).locator(".command code").first.inner_text())
    assert words[:3] == ["optbench", "apply", "recipes/gte-large.yaml"]
    assert len(words) == 5
