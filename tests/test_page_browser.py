"""`report.html` in a real browser: on a screen, on a phone, in the dark and in print.

The page is one with long words, right-to-left text, emoji and markup in every place where somebody else's text stands.
"""

import re
from dataclasses import replace

import pytest

from peft_surgical.facts import Fact
from peft_surgical.report import Report
from peft_surgical.reporting.page import render_page

from .browser import CHROMIUM, Browser
from .reports import ANSWERS, FACT, report

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: put one on the path, or name it in PEFT_SURGICAL_CHROMIUM"
)

EVIL = "<img src='http://127.0.0.1:9/x' onerror=alert(1)><script>alert(1)</script><style>*{display:none}</style>"
LONG = "Donaudampfschifffahrtsgesellschaft" * 5
ARABIC = "ما هي عاصمة فرنسا؟"
PHONE, SCREEN, PAPER = 390, 1100, 718
VIEWS = {
    "screen": {"width": SCREEN},
    "phone": {"width": PHONE, "phone": True},
    "small phone": {"width": 320, "phone": True},
    "dark": {"width": PHONE, "phone": True, "dark": True},
    # The width of A4 between its margins; a printer has no dark paper.
    "print": {"width": PAPER, "media": "print", "dark": True},
}

# Elements that stick out of the window, other than inside what scrolls by itself.
OVERFLOWING = """
[...document.querySelectorAll("body *")]
  .filter(e => !e.closest(".scroll") && !e.closest("svg"))
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(e => e.outerHTML.slice(0, 120))
"""

# Text whose contrast with what is behind it is below the ratio that WCAG 2.1 asks for (AA).
FAINT = """
(() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number)
  const light = colour => {
    const [r, g, b] = numbers(colour).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const behind = e => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor
      if (numbers(colour)[3] !== 0) return colour
    }
    return "rgb(255, 255, 255)"
  }
  const found = []
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement
    if (!walk.currentNode.data.trim() || e.closest("svg")) continue
    const style = getComputedStyle(e)
    const [dark, bright] = [light(style.color), light(behind(e))].sort((a, b) => a - b)
    const size = parseFloat(style.fontSize)
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700)
    const ratio = (bright + 0.05) / (dark + 0.05)
    if (ratio < (large ? 3 : 4.5)) found.push([e.className, style.color, ratio.toFixed(2)].join(" "))
  }
  return [...new Set(found)]
})()
"""


def hostile() -> Report:
    fact = Fact.from_dict(
        {
            **FACT.to_dict(),
            "held_out": [f"{EVIL} {LONG}?", f"{ARABIC} {LONG}", "👩\u200d👩\u200d👧 " * 40],
            "probes": [{"prompt": f"Really, {EVIL}?", "kind": LONG}],
        }
    )
    answers = {
        stage: {**given, "held_out": [f"{EVIL} {LONG} Lyon", f"باريس {ARABIC}", "Paris\n" * 5]}
        for stage, given in ANSWERS.items()
    }
    made = report(fact=fact, answers=answers, model=f"somebody/{LONG}")
    return replace(made, versions={**made.versions, LONG: LONG}, seconds={**made.seconds, "a_step_of_its_own": 0.1})


@pytest.fixture(scope="module")
def picture():
    """A heatmap of the size that a model of 30 layers has."""
    image = pytest.importorskip("PIL.Image").new("RGB", (1400, 900), "pink")
    from io import BytesIO

    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def files(tmp_path_factory, picture):
    folder = tmp_path_factory.mktemp("pages")
    command = f"peft-surgical edit fact.yaml --model {LONG} --out 'my out'"
    for name, made in {"plain": report(), "hostile": hostile()}.items():
        made = replace(made, settings={"command": command})
        (folder / f"{name}.html").write_text(render_page(made, picture=picture), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=[(name, view) for name in ("plain", "hostile") for view in VIEWS], ids=str)
def page(request, browser, files):
    name, view = request.param
    return browser.open(files / f"{name}.html", **VIEWS[view])


def test_it_says_nothing_and_asks_nobody(page):
    assert page.said == []
    assert [url.rsplit("/", 1)[0][:7] for url in page.asked] == ["file://"]


def test_nothing_sticks_out(page):
    assert page.value(OVERFLOWING) == []
    assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_every_text_can_be_read(page):
    assert page.value(FAINT) == []


def test_every_part_is_there_and_drawn(page):
    headings = page.value("[...document.querySelectorAll('h2')].map(e => e.innerText)")
    assert headings == [
        "What it says now",
        "Where it was edited",
        "Held-out prompts",
        "Controls",
        "Probes",
        "Where the time went",
        "Do it again",
    ]
    # An element that is not drawn has no text for a person.
    assert page.value("[...document.querySelectorAll('p, h1, h2, h3, dd, pre, li, mark')].every(e => e.innerText)")
    assert page.value("document.querySelector('figure img').naturalWidth") == 1400
    assert page.value("document.querySelectorAll('script, .prompt img').length") == 0
    # Each mark of the plot is inside its track, and at its place between the axis's ends.
    assert page.value("""
      [...document.querySelectorAll(".track > svg")].every(svg => {
        const track = svg.getBoundingClientRect()
        return [...svg.querySelectorAll("g")].every(g => {
          const box = g.getBoundingClientRect()
          return box.width > 5 && box.left > track.left - 6 && box.right < track.right + 6 && box.bottom < track.bottom
        })
      })
    """)


def test_the_tests_of_this_file_can_fail(browser, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        "<meta name='viewport' content='width=device-width'><p style='width: 500px; color: #bbb'>wide</p>"
        "<img src='none.png'><script>console.error(1); x()</script>"
    )
    page = browser.open(path, width=PHONE, phone=True)
    assert len(page.asked) == 2
    assert {event.get("type") or event.get("entry", {}).get("source") or "exception" for event in page.said} >= {
        "error",
        "network",
        "exception",
    }
    assert len(page.value(OVERFLOWING)) == 1
    assert len(page.value(FAINT)) == 1


def test_words_of_the_answers_are_marked_in_their_colours(browser, files):
    page = browser.open(files / "plain.html", width=SCREEN)
    colours = page.value("""
      Object.fromEntries(["old", "new", "right"].map(kind => [
        kind, [...document.querySelectorAll(`dd mark.${kind}`)].map(e => getComputedStyle(e).backgroundColor)]))
    """)
    assert {kind: set(found) for kind, found in colours.items()} == {
        "old": {"rgb(255, 223, 201)"},
        "new": {"rgb(210, 229, 255)"},
        "right": {"rgb(220, 239, 220)"},
    }


def test_right_to_left_text_runs_from_the_right(browser, files):
    page = browser.open(files / "hostile.html", width=SCREEN)
    assert page.value(f"""
      [...document.querySelectorAll(".ask")]
        .map(e => [e.innerText.includes("{ARABIC}"), getComputedStyle(e).direction])
        .every(([arabic, direction]) => direction === (arabic ? "rtl" : "ltr"))
    """)


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_it_prints(name, browser, files):
    pdf = browser.open(files / f"{name}.html", width=SCREEN, dark=True).pdf()
    assert pdf.startswith(b"%PDF-")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8
