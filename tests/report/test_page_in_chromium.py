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
WIDTHS = (1400, 800, 390)
# The tables of a page whose text is wider than its card, all details open.
CUT = """() => [...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth)
    .map(each => document.getElementById(each.getAttribute('aria-labelledby')).textContent)"""
# The labels of a figure that cover each other, or that leave the figure.
OVERLAPS = """() => [...document.querySelectorAll('[data-spec] svg')].flatMap(svg => {
    const frame = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll('.mark-text text')].filter(text => text.textContent && +getComputedStyle(text).opacity > 0)
        .map(text => [text.textContent, text.getBoundingClientRect()]);
    const beyond = boxes.filter(([, box]) => box.left < frame.left - 1 || box.right > frame.right + 1).map(([name]) => [name, 'beyond']);
    const over = (one, other) => Math.min(one.right, other.right) - Math.max(one.left, other.left) > 1
        && Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top) > 3;
    return beyond.concat(boxes.flatMap(([name, box], index) =>
        boxes.slice(index + 1).filter(([, other]) => over(box, other)).map(([second]) => [name, second])));
})"""
# The smallest contrast of a figure's text, and of its marks, to the card behind them (WCAG 2.2, 1.4.3 and 1.4.11).
CONTRASTS = """() => {
    const parse = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (color) => { const [r, g, b] = parse(color).map(part => part / 255)
        .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const contrast = (one, two) => { const [a, b] = [light(one), light(two)]; return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); };
    const card = getComputedStyle(document.querySelector('figure')).backgroundColor;
    const least = (selector, property) => Math.min(...[...document.querySelectorAll(selector)].map(each => getComputedStyle(each)[property])
        .filter(color => color !== 'none' && parse(color)[3] !== 0).map(color => contrast(color, card)));
    return [least('[data-spec] svg text', 'fill'),
        Math.min(least('.mark-symbol path', 'fill'), least('.mark-line path, .mark-rule line', 'stroke'))];
}"""


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
    assert drawn == opened.page.locator("[data-spec]").count() > 12
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


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_fit_their_cards_and_labels_stand_free_at_every_width(browser: "Browser", exported_page: Path, width: int) -> None:
    opened = Opened(browser, exported_page, viewport={"width": width, "height": 900})
    assert opened.page.evaluate("document.querySelectorAll('.scroll').length") > 40
    assert opened.page.evaluate(CUT) == []
    for folded in opened.page.locator("details").all():
        folded.evaluate("element => element.open = true")
    opened.page.wait_for_timeout(100)
    assert opened.page.evaluate(CUT) == []
    assert opened.page.evaluate(OVERLAPS) == []
    assert opened.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert opened.said == []
    opened.context.close()


def test_tables_return_when_the_window_grows(browser: "Browser", exported_page: Path) -> None:
    opened = Opened(browser, exported_page, viewport={"width": 390, "height": 900})
    stacked = "document.querySelector('.table').classList.contains('stacked')"
    assert opened.page.evaluate(stacked)
    labels = opened.page.locator(".table").first.locator("tbody tr").first.locator("td")
    assert labels.first.get_attribute("data-label") == "verdict"
    opened.page.set_viewport_size({"width": 1400, "height": 900})
    for _ in range(50):  # the page forbids the evaluation that wait_for_function needs
        if not opened.page.evaluate(stacked):
            break
        opened.page.wait_for_timeout(50)
    assert not opened.page.evaluate(stacked)
    assert opened.page.evaluate(CUT) == []
    opened.context.close()


def test_first_screen_holds_every_recipes_verdict_and_plane(browser: "Browser", exported_page: Path) -> None:
    opened = Opened(browser, exported_page, viewport={"width": 1400, "height": 900})
    recipes = opened.page.locator(".planes figure")
    assert recipes.count() == 5
    for figure in recipes.all():
        box = figure.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 900
        assert any("target" in text for text in figure.locator("svg .mark-text").all_text_contents())
    heads = opened.page.locator("table").first.locator("thead th").all_inner_texts()
    assert {"verdict", "target", "allowed"} <= set(heads)
    opened.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_stand_out_from_their_card(browser: "Browser", exported_page: Path, scheme: str) -> None:
    opened = Opened(browser, exported_page, viewport={"width": 1400, "height": 900}, color_scheme=scheme)
    text, marks = opened.page.evaluate(CONTRASTS)
    assert text >= 4.5
    assert marks >= 3
    opened.context.close()


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


def test_command_stands_once_in_a_section(opened: Opened) -> None:
    sections = opened.page.locator("main > section").all()
    assert len(sections) == 4
    for section in sections:
        shown = section.locator(".command code").all_text_contents()
        assert shown
        assert len(set(shown)) == len(shown)
        assert section.locator("figure .command, .table .command").count() == 0


def test_command_with_a_strangers_text_is_one_quoted_word(opened: Opened) -> None:
    import shlex

    words = shlex.split(opened.page.locator("section.record").nth(1).locator(".command code").first.inner_text())
    assert words[:3] == ["optbench", "apply", "recipes/gte-large.yaml"]
    assert len(words) == 5
