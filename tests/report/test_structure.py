"""The structure view: its data, its page, and what Chromium draws of it."""

import base64
import hashlib
import html
import io
import json
import re
from pathlib import Path

import pytest

from isotrace.base.errors import InputError
from isotrace.domains.protein.domain import PROTEIN
from isotrace.report.atlas.structure import structure_data, structure_page, structure_view

DATA = Path(__file__).parents[1] / "data"
GB1 = "MTYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
HELIX = [0.0, *(2.5 * (22 <= i < 36) for i in range(56)), 0.0]
SILENT = [9.0, *[0.0] * 56, 9.0]  # fires on the special tokens only
FILES = ["1pga.pdb", "1pga.cif"]
WEBGL = True
SMALL = (360, 700)  # pixels of the window, since every one is drawn by the processor


def read(sequence: str = GB1):
    offsets = [(0, 0), *((i, i + 1) for i in range(len(sequence))), (0, 0)]
    return PROTEIN.read(sequence, ["<cls>", *sequence, "<eos>"], offsets)


def carried(text: str) -> dict:
    """The data as a browser finds it in the page."""
    (found,) = re.findall(r'<script type="application/json" class="structure-data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


@pytest.mark.parametrize("name", FILES)
def test_residues_and_values_line_up(name):
    data = structure_data(DATA / name, read(), {"helix": HELIX, "silent": SILENT})
    view = structure_view(data)
    assert carried(view.html) == data
    (chain,) = data["chains"]
    assert [(number, index) for number, _, index, _, _ in chain["residues"]] == [(i + 1, i) for i in range(56)]
    helix, silent = data["tracks"]
    assert helix == {"name": "helix", "scale": 2.5, "values": HELIX[1:-1]}
    assert silent == {"name": "silent", "scale": 0.0, "values": [0.0] * 56}
    assert "Chain A: 56 of 56 residues of the sequence are in the structure." in view.html
    atoms = [line for line in data["text"].splitlines() if line.startswith("ATOM")]
    assert len(atoms) == 436


def test_the_script_is_the_same_for_every_view():
    one = structure_view(structure_data(DATA / "1pga.pdb", read(), {"helix": HELIX}))
    two = structure_view(structure_data(DATA / "1pga.cif", read(), {"silent": SILENT}))
    assert (one.js, one.css) == (two.js, two.css)
    assert "3Dmol" not in one.html
    assert "</script" not in one.js


def test_the_page_admits_its_own_script_alone():
    text = structure_page(
        structure_data(DATA / "1pga.pdb", read(), {"</script><b>": HELIX}), title="<GB1>", lead="layer 3"
    )
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text
    assert "<title>&lt;GB1&gt;</title>" in text
    assert f"<option>{html.escape('</script><b>')}</option>" in text
    assert carried(text)["tracks"][0]["name"] == "</script><b>"


@pytest.mark.parametrize(
    ("tracks", "message"),
    [
        ({}, "no feature to show"),
        ({"f": HELIX[:-1]}, "57 weights for 58 tokens"),
        ({"f": [-1.0] * 58}, "not negative"),
        ({"f": [float("nan")] * 58}, "are finite"),
    ],
)
def test_tracks_that_cannot_be_shown(tracks, message):
    with pytest.raises(InputError, match=message):
        structure_data(DATA / "1pga.pdb", read(), tracks)


def test_another_sequence_is_refused():
    with pytest.raises(InputError, match="no chain of 1pga"):
        structure_data(DATA / "1pga.pdb", read("A" * 56), {"f": [0.0] * 58})


def drawn(page) -> tuple[int, int]:
    """Pixels of the canvas that are not white, and those that are orange."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    page.wait_for_timeout(400)
    pixels = image.open(io.BytesIO(page.locator(".structure-canvas").screenshot())).convert("RGB")
    colours = pixels.crop((5, 5, pixels.width - 5, pixels.height - 5)).getcolors(1 << 22)
    return (
        sum(n for n, (r, g, b) in colours if min(r, g, b) < 230),
        sum(n for n, (r, g, b) in colours if r > 1.25 * g > 1.4 * b),
    )


@pytest.mark.browser
@pytest.mark.parametrize("name", [FILES[0], *(pytest.param(name, marks=pytest.mark.nightly) for name in FILES[1:])])
def test_chromium_draws_and_recolours(open_page, name):
    page = open_page(
        structure_page(structure_data(DATA / name, read(), {"helix": HELIX, "silent": SILENT}), title="GB1"), *SMALL
    )
    page.wait_for_selector(".structure-canvas canvas")
    ink, orange = drawn(page)
    assert orange > 500
    assert ink > 3 * orange
    page.select_option(".structure-track", index=1)
    assert drawn(page)[1] == 0
    page.select_option(".structure-track", index=0)
    page.check(".structure-sides")
    assert drawn(page)[0] > ink  # side chains of the helix add to what was drawn
    page.hover(".structure-strip b >> nth=25")
    assert page.inner_text(".structure-at") == "A26: 2.50"
    assert page.locator(".structure-strip .lit").inner_text() == "A"


@pytest.mark.browser
def test_without_webgl_the_letters_remain(open_page):
    text = structure_page(structure_data(DATA / "1pga.pdb", read(), {"helix": HELIX}), title="GB1")
    page = open_page(text, *SMALL, webgl=False)
    page.wait_for_selector(".structure-canvas p")
    assert "this browser offers no WebGL 2" in page.inner_text(".structure-canvas")
    letter = page.locator(".structure-strip b >> nth=25")
    assert letter.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(232, 131, 42)"
