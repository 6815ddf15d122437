"""The page of a trial of steering in Chromium: at every width it fits, shows all its parts and asks for nothing."""

import polars as pl
import pytest

import isotrace
from isotrace.report.steer.steer import SteerResult

RINGS = ("c1ccccc1", "c1ccncc1", "C1CCCCC1", "c1ccoc1", "c1ccsc1", "C1CCNCC1", "C1CCOCC1", "C1CCCC1")
TAILS = ("C", "CC", "O", "CO", "N", "CN", "CCO", "CCN")
TEXTS = [f"{tail}{ring}" for ring in RINGS for tail in TAILS]
HEADINGS = [
    "Dose and response", "Safe window", "What composition leaves of it", "Starts and designs at the claimed dose",
    "Does it show, does it last", "What else it is, and what else it moves", "Rejected rows",
]  # fmt: skip
NAME = "has <b>N</b>, a column with a name that is far too long for a narrow page"


@pytest.fixture(scope="module")
def steered(relu_subject) -> SteerResult:
    table = pl.DataFrame({"smiles": [*TEXTS, "C1CC"], NAME: ["N" in t.upper() for t in TEXTS] + [True]})
    return isotrace.steer(
        relu_subject, table, label=NAME, dose=(0.02, 0.05), layers=1, starts=3, development=8, designs=2, twins=1
    )


def unsafe(found: SteerResult) -> SteerResult:
    """The same with its larger dose outside the window, detectors that found something, and names without a space."""
    last = found.summary["doses"][-1] | {"safe": False}
    told = found.summary["reaction"]
    noticed = {name: {"own": 0.9, "twin": 0.1, "why": None} for name in told["noticed"]}
    summary = found.summary | {
        "judge": found.summary["judge"] | {"of": "share of " + "membrane-spanning helices and barrels" * 3},
        "doses": [*found.summary["doses"][:-1], last],
        "reaction": told | {"noticed": noticed, "sequences": 30},
        "subject": "local:" + "a" * 120,
        "drift": [{"name": "token " + "[C@@H]" * 12, "value": -12_345.678}],
    }
    return SteerResult(summary, found.view, found.tables)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 420])
def test_the_page_fits_and_shows_every_part(steered, open_page, width):
    page = open_page(steered.page(), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("h2").all_inner_texts() == HEADINGS
    assert page.locator("h1").inner_text() == f"Steering towards {NAME}"
    assert page.locator(".verdict").inner_text() == steered.summary["verdict"]
    assert page.locator(".warning").count() == len(steered.summary["warnings"]) > 0
    assert page.locator("section >> nth=0 >> tbody tr").count() == 3
    assert page.locator("#reaction tbody tr").count() == 6
    assert page.locator("#properties tbody tr").count() == 10
    # the figure is inside the page and drawn; every table is whole, or scrolls by itself
    for box in (*(one.bounding_box() for one in page.locator("svg").all()), page.locator(".verdict").bounding_box()):
        assert box["width"] > 40
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width + 1
    scrolls = "e => e.scrollWidth <= e.clientWidth || getComputedStyle(e).overflowX === 'auto'"
    assert all(one.evaluate(scrolls) for one in page.locator(".scroll").all())
    drawn = page.locator(".pairs figure")
    assert drawn.count() == len(steered.view["drawn"]) > 0
    assert all(one.locator("svg").count() == 2 for one in drawn.all())


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 420])
def test_long_names_and_unsafe_doses_fit_too(steered, open_page, width):
    page = open_page(unsafe(steered).page(), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("section >> nth=0 >> tr.unsafe").count() == 1
    inside = "e => e.getBBox().x + e.getBBox().width <= e.ownerSVGElement.viewBox.baseVal.width"
    assert all(one.evaluate(inside) for one in page.locator(".figure text, svg.figure text").all())
    assert "not safe" in page.locator(".figure").text_content()
    assert page.locator("#reaction tbody tr >> nth=0").locator("td").all_inner_texts() == ["90 %", "10 %"]
