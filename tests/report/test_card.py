"""Cards: one description as SVG and PNG, nothing beyond the edge or over something else, no number of its own."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.domains.molecule.drawing import draw_molecule
from isotrace.domains.molecule.tokens import begin
from isotrace.domains.protein.drawing import draw_track
from isotrace.report.card.layout import HEIGHT, WIDTH, public
from isotrace.report.card.pair import pair_card
from isotrace.report.card.raster import png
from isotrace.report.card.trace import said, trace_card
from isotrace.report.card.words import fitted, font, length, lines, shortened
from isotrace.report.page import number

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
PENICILLIN = "CC1(C)S[C@@H]2[C@H](NC(=O)Cc3ccccc3)C(=O)N2[C@H]1C(=O)O"
LONG = "CCCCCCCCCCCCCCCC(=O)OCC(COP(=O)(O)OCC[N+](C)(C)C)OC(=O)CCCCCCCCCCCCCCCCCCCC"  # 60 atoms
MASK = "logit of S minus the mean logit at masked position 7 (there stands S)"
UNSETTLED = (
    "Written differently, the same molecule gets other values: −0.536 ± 0.790 log units over 6 spellings. That is more "
    "than all features together move the target (0.522): what follows explains this spelling, not the molecule."
)


def trace_summary(smiles=ASPIRIN, name="aspirin", **changes):
    """What a card reads of a trace's summary, and its drawing."""
    mol, rng = Chem.MolFromSmiles(smiles), np.random.default_rng(0)
    units = [
        {"index": a.GetIdx(), "symbol": a.GetSymbol(), "score": float(s), "hidden": float(-3 * s)}
        for a, s in zip(mol.GetAtoms(), rng.normal(size=mol.GetNumAtoms()), strict=True)
    ]
    circuit = {
        "n_features": 66, "fraction_of_features": 0.02, "reproduces": True, "ablation": "mean", "full": -1.474,
        "empty": -1.996, "error": 0.0209, "kept": None,
        "reason": None, "control": {"n": 24, "error_mean": 0.194, "error_ci": [0.152, 0.238], "spread": 0.529},
        "neurons": {"n": 66, "error": 0.292},
    }  # fmt: skip
    picture = {
        "spellings": 6, "mean": -0.536, "sd": 0.79, "hidden_spearman": 0.407, "hidden_spearman_ci": [-0.287, 0.837],
        "hidden_reason": None, "unsettled": None, "shown": "score",
    }  # fmt: skip
    target = {
        "name": "probe:logd", "description": "lipophilicity at pH 7.4, logD", "value": -1.474, "unit": "log units",
        "probability": None, "knows": True, "verdict": "It knows.",
    }  # fmt: skip
    groups = [
        {
            "name": "carboxylic acid",
            "elements": [10, 11, 12],
            "hidden": -1.2,
            "sd": 0.31,
            "beyond": True,
            "picture": -2.0,
        },
        {
            "name": "benzene ring",
            "elements": [4, 5, 6, 7, 8, 9],
            "hidden": 0.61,
            "sd": 0.2,
            "beyond": True,
            "picture": -0.5,
        },
        {"name": "ester", "elements": [1, 2, 3], "hidden": 0.15, "sd": 0.4, "beyond": False, "picture": -1.0},
    ]
    summary = {
        "input": smiles, "name": name, "domain": "molecule", "element": "atom",
        "subject": "bundled:molm", "dictionary": "bundled:molm-clt", "units": units,
        "target": target, "circuit": circuit, "picture": picture, "groups": groups,
    }  # fmt: skip
    for path, value in changes.items():
        part, _, key = path.partition("__")
        summary[part] = summary[part] | {key: value} if key else value
    drawing = draw_molecule(mol, {u["index"]: u["score"] for u in units}, size=(460, 340), diverging=True)
    return summary, drawing


def pair_summary(a="Clc1ccccc1CN1CCCC1=O", b="OC(=O)c1ccccc1CN1CCCC1=O", drawings=None, **changes):
    lane = {"n_nodes": 9, "moved": 0.653, "share": 0.24, "control_mean": 0.0438}
    common = {"n_nodes": 40, "moved": -0.0867, "share": None, "control_mean": None}
    summary = {
        "input": a, "against": b, "name": None, "subject": "bundled:molm", "dictionary": "bundled:molm-clt",
        "target": {
            "name": "probe:logd", "description": "lipophilicity at pH 7.4, logD", "unit": "log units", "value": 2.45,
            "against": -0.291, "difference": 2.741,
        },
        "alignment": {"element": "atom"},
        "spellings": {"difference_sd": 1.09},
        "lanes": {"input": [lane, common], "against": [lane | {"share": None}, common]},
        "circuit": {
            "n_features": 38, "error": 1.84, "carries": True, "reason": None, "nothing": {"error": 2.741},
            "every": {"n": 3828, "error": 1.79},
            "control": {"n": 24, "error_mean": 2.71, "error_range": [2.67, 2.77]},
            "neurons": {"error": 2.3, "chosen": {"n": 766, "error": 2.2}},
        },
    }  # fmt: skip
    for path, value in changes.items():
        part, _, key = path.partition("__")
        summary[part] = summary[part] | {key: value} if key else value
    if drawings is None:
        mols = [Chem.MolFromSmiles(text) for text in (a, b)]
        drawings = [draw_molecule(m, {0: 1.0, 1: -0.5}, size=(420, 300), diverging=True, outlined=[0]) for m in mols]
    return summary, drawings


NO_CIRCUIT = "it comes no nearer to the model than every feature ablated, and no nearer than matched random circuits"

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVVHSLAKWKRQTLGQHDFSAGEGLYTHMKALRPDED"
TRACK = draw_track(SEQUENCE, [0.1] * len(SEQUENCE), [], 1.0, diverging=True, outlined=[3])
CARDS = {
    "aspirin": lambda: trace_card(*trace_summary()),
    "unsettled": lambda: trace_card(*trace_summary(picture__unsettled=UNSETTLED)),
    "no name": lambda: trace_card(*trace_summary(PENICILLIN, None, target__description=MASK, target__probability=0.02)),
    "60 atoms": lambda: trace_card(*trace_summary(LONG, LONG, circuit__kept=0.81)),
    "no letters for it": lambda: trace_card(*trace_summary(name="阿司匹林")),
    "no text": lambda: trace_card(*trace_summary(name="a\x00b <&\u2028> \udcff", subject="mod\udce9l\x0b")),
    "long words": lambda: trace_card(*trace_summary(
        PENICILLIN, "a name that goes on and on, as names in tables of suppliers do, up to one hundred letters & more",
        target__unit="log10 of micrograms per millilitre of human plasma at 37 degrees",
        target__description="class: " + "binds to the receptor " * 12, circuit__reason=NO_CIRCUIT,
        subject="/somewhere/deep/" + "model" * 30, dictionary="elsewhere\\of\\mine\\dictionary",
    )),
    "alone": lambda: trace_card(*trace_summary(
        "C", None, picture__sd=None, picture__spellings=1, circuit__neurons={"n": None, "error": None},
        picture__hidden_reason="fewer than three atoms can be hidden here", circuit__ablation="zero",
        circuit__control={"n": 24, "error_mean": None, "error_ci": [None, None], "spread": None},
    )),
    "pair": lambda: pair_card(*pair_summary(), 0.883),
    "pair in doubt": lambda: pair_card(
        *pair_summary(LONG, LONG + "C", spellings__difference_sd=4.2, circuit__carries=False,
                      circuit__reason=NO_CIRCUIT), 123456.0,
    ),
    "two sequences": lambda: pair_card(
        *pair_summary(SEQUENCE, SEQUENCE[::-1], [TRACK, TRACK], spellings=None, name="K3R",
                      alignment__element="residue", circuit__neurons={"error": None, "chosen": None}), 0.2,
    ),
}  # fmt: skip


def words(svg):
    """(text, left, top, right, bottom) of every line that the card itself writes."""
    found = []
    for node in ElementTree.fromstring(svg):
        if node.tag.endswith("}text"):
            size, wide = float(node.attrib["font-size"]), float(node.attrib["textLength"])
            bold = node.get("font-weight") is not None
            assert wide == pytest.approx(length(node.text, size, bold), abs=0.1)
            left = float(node.attrib["x"]) - {"start": 0, "end": 1}[node.get("text-anchor", "start")] * wide
            base = float(node.attrib["y"])
            found.append((node.text, left, base - 0.73 * size, left + wide, base + 0.21 * size))
    return found


@pytest.mark.parametrize("name", CARDS)
def test_nothing_leaves_the_card_or_lies_over_other_words(name):
    svg = CARDS[name]()
    found = words(svg)
    boxes = [
        tuple(float(n.attrib[k]) for k in ("x", "y", "width", "height"))
        for n in ElementTree.fromstring(svg)
        if n.tag.endswith("}svg")
    ]
    pictures = [("drawing", x, y, x + w, y + h) for x, y, w, h in boxes]
    assert len(pictures) == (1 if "Distance to the model" in svg else 2)
    for text, left, top, right, bottom in [*found, *pictures]:
        assert left >= 40, text
        assert right <= WIDTH - 40 + 0.1, text
        assert 8 < top < bottom <= HEIGHT - 8, text
    every = [*found, *pictures]
    for i, (text, left, top, right, bottom) in enumerate(every):
        for other, left2, top2, right2, bottom2 in every[:i]:
            assert min(right, right2) <= max(left, left2) + 0.1 or min(bottom, bottom2) <= max(top, top2) + 0.1, (
                text,
                other,
            )


@pytest.mark.parametrize("name", ["60 atoms", "no text", "pair", "two sequences"])
def test_a_png_of_the_same_size_comes_from_the_svg(name):
    image = Image.open(io.BytesIO(png(CARDS[name]())))
    assert image.size == (1200, 630)
    pixels = np.asarray(image.convert("RGB"))
    assert (pixels[:4] == (232, 131, 42)).all()  # the bar on top
    for _, left, top, right, bottom in words(CARDS[name]()):  # ink where the SVG says words are
        assert pixels[int(top) : int(bottom) + 1, int(left) : int(right) + 1].min() < 190


def test_the_png_is_what_a_browser_shows(browser):
    """But for letters, which are the browser's own."""
    svg = re.sub("<text.*?</text>", "", CARDS["pair"]())
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.set_content(f'<body style="margin:0">{svg}</body>')
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), dtype=float)
    page.close()
    own = np.asarray(Image.open(io.BytesIO(png(svg))).convert("RGB"), dtype=float)
    assert abs(shot - own).mean() < 0.35
    white = np.full_like(own, 255)
    assert abs(shot - white).mean() > 10 * abs(shot - own).mean()


ODD = (
    "[Na+].[Cl-]", "[2H]C([2H])[2H]", "C[N+](=O)[O-]", "[CH3]", "[O][O]", "C#N", "F/C=C/F", "N[C@@H](C)C(=O)O", "[U]",
    "C1CC1.O", "*CC*", "[Fe+2]", "CC(C)=C=C(C)C", "B(O)O", "c1ccccc1-c1ccncc1", "[nH]1cccc1", "O=S(=O)(O)O", PENICILLIN,
)  # fmt: skip


@pytest.mark.parametrize("smiles", ODD)
def test_whatever_rdkit_draws_can_be_drawn(smiles):
    mol = Chem.MolFromSmiles(smiles)
    drawn = draw_molecule(mol, {0: 1.0}, size=(100, 80), diverging=True)
    assert np.asarray(Image.open(io.BytesIO(png(drawn)))).min() < 255


def test_a_molecule_that_is_not_finished_can_be_drawn():
    """Its bonds have no order yet: RDKit draws them in dashes."""
    mol = begin("CC(=O)Oc1ccc")
    assert "dasharray" in draw_molecule(mol, {}, size=(100, 80), diverging=True)
    assert png(draw_molecule(mol, {}, size=(100, 80), diverging=True))


@pytest.mark.parametrize("inner", ['<image href="x.png"/>', '<path d="M0 0A1 1 0 0 0 2 2"/>', '<path d="m0 0l1 1"/>'])
def test_what_cannot_be_drawn_is_said(inner):
    with pytest.raises(ValueError, match="cannot be drawn"):
        png(f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9" viewBox="0 0 9 9">{inner}</svg>')


def test_holes_stay_open_and_boxes_lie_where_they_are_told():
    ring = "M10 10H40V40H10ZM20 20H30V30H20Z"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="100" height="50" viewBox="0 0 100 50">'
        f'<svg x="50" y="0" width="50" height="50" viewBox="0 0 50 50"><path d="{ring}" fill="#000"/></svg></svg>'
    )
    pixels = np.asarray(Image.open(io.BytesIO(png(svg))).convert("L"))
    assert pixels.shape == (50, 100)
    assert [pixels[y, x] for y, x in ((25, 75), (15, 65), (25, 65), (25, 15), (5, 75))] == [255, 0, 0, 255, 255]


def test_numbers_on_a_card_are_those_of_the_summary():
    summary, drawing = trace_summary(circuit__kept=0.921, target__probability=0.333)
    svg, circuit, seen = trace_card(summary, drawing), summary["circuit"], summary["picture"]
    text = " ".join(found[0] for found in words(svg))
    ends = max(abs(u["score"]) for u in summary["units"])
    told = [circuit["error"], circuit["control"]["error_mean"], *circuit["control"]["error_ci"], circuit["empty"]]
    told += [circuit["neurons"]["error"], abs(circuit["full"] - circuit["empty"]), circuit["kept"], ends, -ends]
    told += [seen["mean"], seen["sd"], seen["hidden_spearman"], *seen["hidden_spearman_ci"], summary["target"]["value"]]
    told += [g[key] for g in summary["groups"] if g["beyond"] for key in ("hidden", "sd")]
    assert all(number(value) in text for value in told)
    known = {number(v) for v in told} | {number(v) for v in (66, 24, 6, 0.333)} | {"7.4"}
    shown = re.findall(r"(?<![\w.])[−-]?\d[\d,]*(?:\.\d+)?", text.replace(ASPIRIN, ""))
    assert {n.rstrip(",") for n in shown} <= known


def test_a_share_that_is_not_defined_is_a_reason():
    text = " ".join(found[0] for found in words(trace_card(*trace_summary())))
    assert "No share is given: all features together move it by 0.522, no more" in text
    assert "differ (0.529)" in text


def test_colours_that_contradict_what_is_measured_are_named():
    assert said(trace_summary()[0]).endswith("The colours, which are linearised, say the opposite of benzene ring.")
    agreeing = [{**group, "picture": group["hidden"]} for group in trace_summary()[0]["groups"]]
    assert "opposite" not in said(trace_summary(groups=agreeing)[0])


def test_a_picture_of_what_hiding_does_cannot_contradict_it():
    summary, drawing = trace_summary(picture__shown="hidden")
    assert said(summary) == said(trace_summary()[0]).removesuffix(
        " The colours, which are linearised, say the opposite of benzene ring."
    )
    card = trace_card(summary, drawing)
    largest = max(abs(u["hidden"]) for u in summary["units"])
    assert any(text.startswith(number(largest)) for text, *_ in words(card))
    assert any("hiding each atom" in text and "measured" in text for text, *_ in words(card))


def test_spellings_that_differ_by_more_than_is_explained_are_the_sentence():
    assert said(trace_summary(picture__unsettled=UNSETTLED)[0]) == UNSETTLED
    summary, _ = pair_summary(spellings__difference_sd=2.8)
    from isotrace.report.card.pair import said as said_of_pair

    assert said_of_pair(summary).startswith("Other spellings of the two move their difference by 2.80 log units")
    assert said_of_pair(pair_summary()[0]).startswith("The first is 2.74 log units higher.")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("bundled:molm", "bundled:molm"),
        ("hf:org/model", "hf:org/model"),
        ("probe:logd", "probe:logd"),
        ("probe:runs/mine/solubility/", "probe:solubility"),
        ("/data/x/model", "model"),
        (r"C:\models\mine", "mine"),
        ("mask:7", "mask:7"),
    ],
)
def test_folders_of_the_machine_stay_there(source, name):
    assert public(source) == name


def test_words_are_broken_shortened_and_made_smaller_until_they_fit():
    text = "one two three four five six seven eight nine ten"
    for size in (40, 20, 8):
        assert " ".join(lines(text, size, 200)) == text
        assert all(length(line, size) <= 200 for line in lines(text, size, 200))
    assert length(shortened("x" * 400, 20, 100), 20) <= 100
    assert shortened("short", 20, 100) == "short"
    block = fitted(text * 20, 100, 60, (20, 10))
    assert block.size == 10
    assert block.height <= 60
    assert block.lines[-1].endswith("…")
    assert fitted(text, 1000, 60, (20, 10)).size == 20
    assert length("abc", 50) == pytest.approx(font(50).getlength("abc"), rel=0.02)


def test_a_card_ends_in_svg_or_png(tmp_path):
    from isotrace.report.card.carded import Carded

    class Blank(Carded):
        kind = "trace"

        def card_svg(self):
            return CARDS["aspirin"]()

        to_frame = page = _repr_html_ = lambda self, *_: None

    blank = Blank({})
    assert blank.card(tmp_path / "a.svg").read_text() == CARDS["aspirin"]()
    with Image.open(blank.card(tmp_path / "a.PNG")) as image:
        assert image.size == (1200, 630)
    assert [*blank.beside()] == ["card.svg", "card.png"]
    with pytest.raises(InputError, match=r"end its name in \.svg or \.png"):
        blank.card(tmp_path / "a.jpg")


# ---- what pages offer ----

PAGE = (
    '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">'
    '<button data-copy="C&#10;N&#9;1 &amp; &lt;b&gt;">SMILES</button><script>{}</script>'
)


@pytest.mark.parametrize("clipboard", [True, False])
def test_copying_works_with_a_clipboard_and_without(open_page, clipboard):
    from isotrace.report.page import template_text

    page = open_page(PAGE.format(template_text("copy.js")))
    page.evaluate(
        "(there) => { window.got = null; const put = { writeText: async (text) => { window.got = text; } };"
        "Object.defineProperty(navigator, 'clipboard', { value: there ? put : undefined, configurable: true });"
        "document.execCommand = () => { window.got = document.activeElement.value; return true; }; }",
        clipboard,
    )
    page.click("button")
    page.wait_for_function("document.querySelector('button').dataset.said === 'copied'")
    assert page.evaluate("window.got") == "C\nN\t1 & <b>"
    assert page.locator("textarea").count() == 0


def test_a_failure_to_copy_is_said(open_page):
    from isotrace.report.page import template_text

    page = open_page(PAGE.format(template_text("copy.js")))
    page.evaluate(
        "() => { Object.defineProperty(navigator, 'clipboard', { value: undefined });"
        "document.execCommand = () => false; }"
    )
    page.click("button")
    page.wait_for_function("document.querySelector('button').dataset.said === 'not copied'")
