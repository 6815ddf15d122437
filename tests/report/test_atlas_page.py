"""The page of the feature atlas finds, sorts, draws and says what the tables say."""

import re
from dataclasses import replace

import polars as pl
import pytest
import test_atlas
from polars.testing import assert_frame_equal

from isotrace.domains.molecule.drawing import colour
from isotrace.report.atlas.atlas import AtlasTables

pictures, tables, made, page_of = test_atlas.pictures, test_atlas.tables, test_atlas.made, test_atlas.page_of
ATTACK = '</script><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>{{7*7}}"\'>'


@pytest.mark.browser
def test_the_browser_reads_what_python_packed(tables, pictures, open_page):
    page = open_page(page_of(tables, pictures))
    page.wait_for_selector("#feature-grid [data-row]")
    names = ["layer", "feature", "label", "concept", "f1", "q", "density", "moran_i"]
    read = page.evaluate(
        "(names) => names.map((n) => Array.from({length: features[n].n}, (_, i) => features[n].get(i)))", names
    )
    frame = pl.DataFrame(dict(zip(names, read, strict=True)), strict=False)
    assert_frame_equal(frame, tables.features.select(names), check_dtypes=False, rel_tol=1e-4)
    examples = page.evaluate("""async () => { const t = await table("examples");
        return Array.from({length: t.row.n}, (_, i) => [t.positions.get(i), t.values.get(i)]); }""")
    order = pl.Series(["top", "middle", "near-miss"])
    expected = tables.examples.with_columns(
        place=pl.col("group").replace_strict(order, range(3)), row=pl.struct("layer", "feature").rank("dense")
    ).sort("row", "place", "activation", descending=[False, False, True])
    assert [e[0] for e in examples] == expected["positions"].to_list()
    for (_, values), wanted in zip(examples, expected["values"], strict=True):
        assert values == pytest.approx(wanted.to_list(), rel=2**-10)


def first_keys(page, n: int = 8) -> list[str]:
    found = page.eval_on_selector_all("#feature-grid [data-row]", "rows => rows.map((r) => r.cells[0].textContent)")
    return found[:n]


@pytest.mark.browser
def test_f1_is_counted_of_token_concepts_alone(tables, pictures, open_page):
    page = open_page(page_of(tables, pictures, structure="structure.html"))
    assert [h.endswith("of 480 concepts of tokens") for h in page.locator("#compare h3").all_text_contents()] == [
        True
    ] * 2
    lead = page.locator("header .lead")
    assert "500 concepts" in lead.inner_text()
    assert lead.locator("a").get_attribute("href") == "structure.html"
    assert open_page(page_of(tables, pictures)).locator("header a").count() == 0


@pytest.mark.browser
def test_sorting_and_filtering_agree_with_polars(tables, pictures, open_page):
    page = open_page(page_of(tables, pictures))
    page.wait_for_selector("#feature-grid [data-row]")
    key = pl.format("{}.{}", "layer", "feature")
    frame = tables.features.join(tables.concepts.select("concept", "group"), on="concept", how="left")

    def top(frame, descending):
        return frame.sort("f1", descending=descending, nulls_last=True).select(key).to_series().head(8).to_list()

    assert first_keys(page) == top(frame, True)
    page.click("#feature-grid [data-sort='2']")
    assert first_keys(page) == top(frame, False)
    page.press("#feature-grid", "End")
    assert tables.features.filter(pl.col("f1").is_null()).height > 0
    assert page.locator("#feature-grid tr.current .none").count() >= 2  # missing F1 and its null come last both ways
    page.click("#feature-grid [data-sort='2']")
    label = frame.filter(pl.col("label") != "unexplained")["label"].mode()[0]
    group = frame.filter(pl.col("label") == label)["group"][0]
    tests = [
        ("#text", label, pl.any_horizontal(pl.col("label", "concept").str.contains(label, literal=True))),
        ("#layer", "2", pl.col("layer") == 2),
        ("#state", "labelled", pl.col("label") != "unexplained"),
        ("#group", group, pl.col("group") == group),
        ("#least", "0.05", pl.col("f1") >= 0.05),
    ]
    kept = frame
    for selector, value, test in tests:
        change = page.fill if selector in ("#text", "#least") else page.select_option
        change(selector, value)
        kept = kept.filter(test)
        assert page.text_content("#count") == f"{kept.height} of 400 features"
        assert first_keys(page) == top(kept, True)
    assert kept.height > 0


@pytest.mark.browser
def test_only_rows_in_view_exist(tables, pictures, open_page):
    page = open_page(page_of(tables, pictures))
    page.wait_for_selector("#feature-grid [data-row]")
    assert page.locator("#feature-grid [data-row]").count() < 40
    assert page.get_attribute("#feature-grid table", "aria-rowcount") == "401"
    page.focus("#feature-grid")
    page.keyboard.press("End")
    page.wait_for_selector("#feature-grid [aria-rowindex='401'].current")
    assert page.locator("#feature-grid [data-row]").count() < 40


@pytest.mark.browser
def test_a_row_opens_its_card(tables, pictures, open_page):
    page = open_page(page_of(tables, pictures))
    best = tables.features.sort("f1", descending=True, nulls_last=True)
    for n in range(2):
        page.click("#feature-grid [data-row] >> nth=0") if n == 0 else page.keyboard.press("ArrowDown")
        feature = best.row(n, named=True)
        page.wait_for_selector(f"text=Feature {feature['feature']}, layer {feature['layer']}")
        assert page.text_content("#card h3") == feature["label"]
        assert page.evaluate("location.hash") == f"#f={feature['layer']}.{feature['feature']}"
        kind = tables.concepts.filter(concept=feature["concept"])["kind"][0]
        score = {"token": "f1", "class": "auroc", "value": "spearman"}[kind]
        neuron = tables.associations.filter(source="neurons", concept=feature["concept"], concept_rank=1)
        line = page.text_content('#card .dots .row:has-text("subject\'s neurons") .value')
        assert float(re.match(r"−?[\d.]+", line)[0].replace("−", "-")) == pytest.approx(neuron[score][0], rel=5e-3)
    page.wait_for_selector("#card .example >> nth=7", state="attached")
    assert page.locator("#card .example").count() == 8


@pytest.mark.browser
def test_links_lead_to_features_and_concepts(tables, pictures, open_page):
    page = open_page(page_of(tables, pictures))
    page.evaluate("location.hash = '#f=3.7'")
    page.wait_for_selector("text=Feature 7, layer 3")
    # Moran's I of feature 7 is missing: a dash that says why.
    assert "neighbouring elements" in page.get_attribute("#card dt:has-text('Moran') + dd .none >> nth=0", "title")
    concept = page.text_content("#card .concepts [data-concept] >> nth=0")
    page.click("#card .concepts [data-concept] >> nth=0")
    wanted = tables.concepts.filter(pl.col("concept").str.contains(concept, literal=True)).height
    assert page.text_content("#concept-count") == f"{wanted} of 500 concepts"
    page.click("#concept-grid [data-row] >> nth=0")
    name = page.text_content("#concept-grid .current td >> nth=0")
    best = tables.associations.filter(source="dictionary", concept=name, concept_rank=1).row(0, named=True)
    page.wait_for_selector(f"text=Feature {best['feature']}, layer {best['layer']}")
    page.evaluate("location.hash = '#f=99.1'")
    page.wait_for_selector("text=This atlas has no feature 99.1.")


def one_example(tables, pictures, activations: dict[int, float]) -> tuple[AtlasTables, list]:
    """The first feature alone, with one example of the first picture."""
    feature = tables.features.drop_nulls("concept")[:1].with_columns(max_activation=pl.lit(2.0))
    example = tables.examples.filter(layer=feature["layer"][0], feature=feature["feature"][0])[:1].with_columns(
        index=pl.lit(0), positions=pl.lit(list(activations)), values=pl.lit(list(activations.values()))
    )
    associations = tables.associations.filter(pl.col("source") != "dictionary")
    drawn = replace(tables, features=feature, examples=example, sequences=tables.sequences[:1])
    return replace(drawn, associations=associations), pictures[:1]


def fills(page, selector: str, style: str) -> list[str]:
    """Colours as #rrggbb."""
    found = page.eval_on_selector_all(selector, f"es => es.map((e) => getComputedStyle(e).{style})")
    return ["#" + "".join(f"{int(v):02x}" for v in re.findall(r"\d+", colour)[:3]) for colour in found]


@pytest.mark.browser
def test_atoms_and_tokens_take_the_colours_of_their_activations(tables, open_page):
    drawing = made.picture("C[C@H](N)C#N")
    atoms = {drawing["tokens"][p][1][0]: p for p in range(len(drawing["tokens"])) if drawing["tokens"][p][1]}
    branch = next(p for p, (text, _) in enumerate(drawing["tokens"]) if text == "(")
    activations = {atoms[1]: 2.0, atoms[2]: 0.625, branch: 1.375}
    drawn, pictures = one_example(tables, [drawing], activations)
    page = open_page(page_of(drawn, pictures))
    page.click("#feature-grid [data-row]")
    page.locator("#card .example").scroll_into_view_if_needed()
    page.wait_for_selector("#card svg.graph")
    wanted = {p: colour(v, 2.0, diverging=False) for p, v in activations.items()}
    assert fills(page, "#card .graph circle", "fill") == [wanted[atoms[1]], wanted[atoms[2]]]
    assert fills(page, "#card .mini .on", "backgroundColor") == [wanted[p] for p in sorted(wanted)]
    assert page.locator("#card .mini span").all_text_contents() == [text for text, _ in drawing["tokens"]]
    # Hydrogens go to the side without bonds: NH₂ or H₂N.
    letters = ["".join(sorted(text)) for text in page.locator("#card .letters text").all_text_contents()]
    assert letters == ["".join(sorted("NH₂")), "N"]
    strokes = {"wedge": 0, "dash": 6}
    lines = sum(strokes[b[3]] if len(b) > 3 else b[2] for b in drawing["bonds"])
    wedges = sum(b[3:] == ["wedge"] for b in drawing["bonds"])
    assert any(len(b) > 3 for b in drawing["bonds"])
    assert page.get_attribute("#card .bonds:not(.dashed)", "d").count("M") == lines
    assert page.get_attribute("#card .wedges", "d").count("Z") == wedges


@pytest.mark.browser
def test_residues_and_bands_are_drawn(tables, open_page):
    track = {
        "kind": "track",
        "text": "ACDEFGHIKL",
        "tokens": [["<cls>", []], *([c, [i]] for i, c in enumerate("ACDEFGHIKL"))],
        "bands": [
            {"name": "CDR1", "start": 2, "end": 5, "group": "CDR"},
            {"name": "site", "start": 4, "end": 6, "group": "site"},
        ],
    }
    activations = {0: 1.0, 3: 2.0}
    drawn, pictures = one_example(tables, [track], activations)
    page = open_page(page_of(drawn, pictures))
    page.click("#feature-grid [data-row]")
    page.locator("#card .example").scroll_into_view_if_needed()
    page.wait_for_selector("#card .residues")
    assert "".join(page.locator("#card .residue b").all_text_contents()) == track["text"]
    found = fills(page, "#card .residue b", "backgroundColor")
    assert [i for i, c in enumerate(found) if c != "#000000"] == [2]
    assert found[2] == colour(2.0, 2.0, diverging=False)
    assert page.locator("#card .band.g0").count() == 3
    assert page.locator("#card .band.g1").count() == 2
    assert page.locator("#card .mini span").all_text_contents() == ["<cls>"]


@pytest.mark.browser
def test_hostile_text_stays_text(tables, pictures, open_page):
    hostile = pl.lit(ATTACK)
    drawing = {**pictures[0], "text": ATTACK, "tokens": [[ATTACK, e] for _, e in pictures[0]["tokens"]]}
    drawing["atoms"] = [[ATTACK, x, y, ""] for _, x, y, _ in drawing["atoms"]]
    drawing["marks"] = [[ATTACK, 0, 0]]
    drawn, pictures = one_example(tables, [drawing], {0: 1.0, 1: 2.0})
    name = drawn.features["concept"][0]
    concept = pl.when(pl.col("concept") == name).then(hostile).otherwise("concept").alias("concept")
    drawn = replace(
        drawn,
        features=drawn.features.with_columns(
            concept, label=hostile, explanation=hostile, reason=hostile, promoted=pl.lit([ATTACK] * 5)
        ),
        concepts=drawn.concepts.with_columns(concept, group=hostile, reason=hostile),
        associations=drawn.associations.with_columns(concept, pooling=hostile),
        sequences=drawn.sequences.with_columns(name=hostile, sequence=hostile, side=hostile),
    )
    html = page_of(drawn, pictures, subject=ATTACK, warnings=[ATTACK])
    page = open_page(html)
    page.click("#feature-grid [data-row]")
    page.locator("#card .example").scroll_into_view_if_needed()
    page.wait_for_selector("#card svg.graph")
    page.click("label:has(#view-concepts)")
    assert page.text_content("#card h3") == ATTACK
    assert page.locator("img").count() == 0
    assert page.evaluate("window.hacked") is None
    assert len(re.findall("<script", html)) == page.locator("script").count()


@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.browser
def test_nothing_is_wider_than_the_window(tables, pictures, open_page, width):
    page = open_page(page_of(tables, pictures, warnings=["One."]), width)
    page.click("#feature-grid [data-row] >> nth=1")
    page.wait_for_selector("#card .example >> nth=7", state="attached")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.locator("#card .example >> nth=7").scroll_into_view_if_needed()
    page.wait_for_selector("#card svg.graph")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_a_source_without_numbers_says_why(tables, pictures, open_page):
    summary = made.summary(400, 30)
    summary["sources"]["untrained"] = {"reason": "no configuration to draw random weights for"}
    page = open_page(page_of(tables, pictures, sources=summary["sources"]))
    row = page.locator(".sources tr:has-text('untrained subject')")
    assert "no configuration" in row.text_content()
    dash = page.locator("#compare .row:has-text('untrained subject') .none").first
    assert dash.get_attribute("title") == "no configuration to draw random weights for"
