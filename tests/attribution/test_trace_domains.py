"""Traces in every domain: proteins, antibodies, reactions, and one that somebody else registers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import isotrace
import tiny
from isotrace.attribution.maps.many import Maps, one_map
from isotrace.attribution.maps.pair import MapSettings, pair_of
from isotrace.attribution.trace import TraceConfig, trace
from isotrace.base.errors import InputError
from isotrace.base.runs import open_run, to_jsonable
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.domains.domain import Track, domain_of
from isotrace.report.atlas.structure import check_structure
from isotrace.report.maps import traced_map
from isotrace.report.page import plural
from isotrace.report.trace.record import Record
from isotrace.report.trace.trace import TraceResult
from isotrace.report.trace.tracks import read_tracks, track_rows
from isotrace.subjects.sources.conversion import PATTERNS
from isotrace.subjects.subject import load_subject
from isotrace.verbs.tracing import map_of

QUICK = TraceConfig(max_features=40, spelling_features=20, n_nodes=4, n_controls=2, n_spellings=4, circuit="effects")
VH = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDY"
    "WGQGTLVTVSS"
)  # trastuzumab, heavy chain
GB1 = "MTYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
PGA = Path(__file__).parents[1] / "data" / "1pga.pdb"
ESTER = "CC(=O)O.OCC>>CC(=O)OCC"
PLACE = 7
CELL = "LYZ S100A9 CD14 MT-CO1 RPS3 ACTB CD3D NKG7 B2M"
TEXTS = {"protein": "MKVCNOSC", "antibody": VH, "reaction": ESTER, "gene": CELL}
VOCABULARY = {
    "protein": list("ACDEFGHIKLMNOPQRSTUVWXY"),
    "antibody": list("ACDEFGHIKLMNPQRSTVWY"),
    "gene": CELL.split(),
    "reaction": ["C", "O", "N", "(", ")", "=", ">>", ".", "1", "c"],
}


def save(folder, domain: str):
    """A random BERT that reads `domain`."""
    special = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>"]
    words = {word: i for i, word in enumerate([*special, *VOCABULARY[domain]])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    pattern = PATTERNS["smiles" if domain == "reaction" else "residues"]
    backend.normalizer = normalizers.Strip()
    split = pre_tokenizers.WhitespaceSplit() if domain == "gene" else pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.pre_tokenizer = split
    ends = [("<cls>", 0), ("<eos>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="<cls> $A <eos>", special_tokens=ends)
    names = dict(zip(("cls", "pad", "eos", "unk", "mask"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{k}_token": v for k, v in names.items()})
    tiny.tiny_model("bert", vocab_size=len(words), max_position_embeddings=160).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=TEXTS)
def shown(request, tmp_path_factory, genes):
    """(subject, dictionary, trace, record) of each domain, of a masked element."""
    domain = request.param
    if domain == "antibody":
        pytest.importorskip("immunum", reason="antibodies are numbered by immunum")
    subject = load_subject(save(tmp_path_factory.mktemp(domain), domain), domain=domain)
    dictionary = tiny.random_dictionary(subject)
    found = trace(subject, dictionary, TEXTS[domain], f"mask:{PLACE}", QUICK)
    return subject, dictionary, found, Record(found, "tiny", "random", FeatureTables(), None, "<img src=x onerror=1>")


def test_the_graph_is_complete_and_mass_goes_to_the_elements(shown):
    *_, found, _ = shown
    assert found.graph.completeness_error() < 1e-4
    reading, scores = found.reading, found.unit_scores
    assert set(scores.elements) == set(range(reading.n_elements))
    outside = sum(float(scores.positions[p]) for p, written in enumerate(reading.elements) if not written)
    assert sum(mass for mass, _ in scores.elements.values()) + outside == pytest.approx(1)
    assert not reading.elements[0]


def test_hiding_an_element_is_what_it_says(shown):
    subject, _, found, _ = shown
    element, position = next((w[0], p) for p, w in enumerate(found.reading.elements) if w and p != PLACE)
    ids = found.frame.batch.ids.clone()
    ids[0, position] = subject.mask_id
    batch = found.frame.batch.with_ids(ids)
    value = float(found.target.value(subject, batch, found.target.hidden(subject, batch)).detach())
    assert found.hidden[element] == pytest.approx(found.value - value, abs=1e-5)


def test_parts_cover_every_element_once(shown):
    *_, found, _ = shown
    assert sorted(e for group in found.groups for e in group.elements) == list(range(found.reading.n_elements))
    assert len({group.name for group in found.groups}) == len(found.groups)


def test_what_is_told_is_in_the_words_of_the_domain(shown):
    *_, found, record = shown
    summary, page = record.summary, record.result().page()
    word = {"reaction": "atom", "gene": "gene"}.get(found.domain.name, "residue")
    assert summary["element"] == word
    assert summary["picture"]["shown"] == "hidden", "effects through the graph have been judged on molecules alone"
    assert {"index", "symbol", "score", "name"} <= set(summary["units"][0])
    assert f"What each {word} adds to the target" in page
    assert "<img src=x" not in page
    if word != "atom":
        assert summary["units"][5]["number"] == 6
        assert "molecule" not in page[page.index("<body>") : page.index('<script type="application/json"')]
    if found.domain.name == "antibody":
        assert (summary["units"][21]["imgt"], summary["units"][21]["chain"]) == ("23", "heavy")
        assert "CDR3" in {group["name"] for group in summary["groups"]}
    links = page.count('class="link"')  # from the atoms that weigh most to the one that is masked, in every drawing
    assert links == (15 if found.domain.name == "reaction" else 0)
    if found.domain.name == "reaction":
        assert {unit["side"] for unit in summary["units"]} == {"reactant", "product"}
        assert [group.name for group in found.groups] == [
            "reactant 1, CC(=O)O", "reactant 2, CCO", "product 3, CCOC(C)=O",
        ]  # fmt: skip


def test_a_file_at_a_glance_is_told_in_the_words_of_the_domain(shown):
    subject, dictionary, found, _ = shown
    domain = found.domain
    result = isotrace.trace(subject, dictionary, [found.reading.text], f"mask:{PLACE}", quick=True, progress=False)
    page, told = result.page(), "\n".join(result.told())
    assert f"1 {plural(domain.name)}, mask" in told
    assert "molecule" not in page[page.index("<main>") :] + told
    assert ("names no substructures" in page) == (not domain.substructures)


HOSTILE = "<img src=x onerror=2>"


def test_labels_of_a_file_stand_beside_the_trace(shown, tmp_path):
    *_, found, record = shown
    domain, reading, n = found.domain, found.reading, found.reading.n_elements
    file = tmp_path / "labels.csv"
    cells = "<" * (n // 3) + "a" * (n - n // 3 - 1) + "."
    file.write_text(f'sequence,class:c,"token:{HOSTILE}"\nother,x,<<\n{reading.text},y,{cells}\n')
    tracks = read_tracks(file, domain, reading)
    result = replace(record, tracks=tracks).result()
    first, second = result.summary["tracks"]
    units = result.summary["units"]
    assert (first["track"], first["label"], second["label"]) == (HOSTILE, "<", "a")
    assert first["elements"] == list(range(n // 3))
    assert first["share"] == n // 3 / n
    mass = [u["mass"] for u in units]
    moved = [sum(mass[(e + by) % n] for e in first["elements"]) / sum(mass) for by in range(n)]
    assert first["mass"] == pytest.approx(moved[0])
    assert first["mass_range"] == pytest.approx(np.quantile(moved, [0.025, 0.975]).tolist())
    sides = [sum(x >= moved[0] - 1e-12 for x in moved), sum(x <= moved[0] + 1e-12 for x in moved)]
    assert first["mass_p"] == pytest.approx(min(1, 2 * min(sides) / n))
    assert first["mass_q"] >= first["mass_p"]
    hidden = [abs(u["hidden"] or 0) for u in units]
    assert second["hidden"] == pytest.approx(sum(hidden[e] for e in second["elements"]) / sum(hidden))
    page = result.page()
    assert "<img" not in page + "".join(result.view["page"]["drawings"].values())
    assert "&lt;img src=x onerror=2&gt;" in page
    boxes = {"protein": 2, "antibody": 4}.get(domain.name, 0)  # 'a' goes on through three rows of the antibody
    assert page.count('class="tracked"') == 3 * boxes
    assert any(line.startswith(f"{HOSTILE} <: ") for line in result.told())
    assert ("tracked" in result.card_svg()) == bool(boxes)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            "sequence,token:ss\nother,AB\n",
            "no label in labels.csv, of the sequence that is traced .*--tracks takes a line",
        ),
        ("sequence,token:ss\n{text},AB\n", "token:ss of labels.csv has 2 characters for .* one character per"),
        ("sequence,token:ss\n{text},{other}\n{text},{cells}\n", "labels it differently in line 2 and line 3"),
        ("sequence,class:ss\n{text},AB\n", "labels.csv labels no .*s: give a column token:NAME, or patterns"),
        ("name,group,kind,pattern\np,g,regex,(\n", "no regular expression"),
    ],
)
def test_labels_that_do_not_fit_say_what_to_do(shown, tmp_path, table, says):
    *_, found, _ = shown
    n, file = found.reading.n_elements, tmp_path / "labels.csv"
    file.write_text(table.format(text=found.reading.text, cells="A" * n, other="B" * n))
    with pytest.raises(InputError, match=says) as error:
        read_tracks(file, found.domain, found.reading)
    assert "\n" not in str(error.value)


def test_what_a_label_carries_is_more_than_elsewhere_where_it_is():
    def rows(values):
        units = [{"mass": value, "hidden": None} for value in values]
        return track_rows([Track("t", (("a", (3, 4)), ("b", (10,)), ("a", (6,)))), Track("empty", ())], units)

    a, b = rows([1.0 + 30 * (i in (3, 4, 6)) for i in range(60)])
    assert a["elements"] == [3, 4, 6]
    assert (a["mass_p"], a["mass_q"]) == (2 / 60, 4 / 60)
    assert a["mass"] == pytest.approx(93 / 150)
    assert a["mass_range"][1] < 0.35
    assert b["mass_p"] == 1.0  # the least that any one carries, as most do
    assert (a["hidden"], a["hidden_range"], a["hidden_q"]) == (None, None, None)
    assert {row["mass_p"] for row in rows([1.0] * 60)} == {1.0}
    whole = Track("t", (("a", (0, 1)),))
    assert track_rows([whole], [{"mass": 1.0, "hidden": 1.0}] * 2)[0]["mass"] is None


def test_other_spellings_where_there_are_any(shown):
    *_, found, _ = shown
    if found.domain.name != "reaction":
        assert found.spellings is None
    else:
        assert len(found.spellings.texts) >= 3
        assert found.spellings.hidden[0].tolist() == pytest.approx(
            [found.hidden.get(e, float("nan")) for e in range(found.reading.n_elements)], nan_ok=True
        )


def test_a_map_names_positions_in_the_words_of_the_domain(shown):
    """Of a domain of somebody else's too, which says nothing of maps; saved and shown with the trace."""
    *_, found, record = shown
    mapped = map_of(found)
    pair = pair_of(
        found.domain, shown[0], found.reading, found.frame.batch, found.target, MapSettings(least=1e-12, nulls=3)
    )
    own = {
        "protein": {"other residues"}, "gene": {"other genes"},
        "antibody": {f"{region} residues" for region in ("FR1", "CDR1", "FR2", "CDR2", "FR3", "CDR3", "FR4")},
        "reaction": {"reactant atoms", "product atoms", "branches", "bonds", "arrows", "dots"},
    }[found.domain.name]  # fmt: skip
    assert {*pair.classes} <= own | {"cause", "answer", "special tokens"}
    assert len({*pair.classes} & own) >= len(own) - 1
    assert sorted(p for at in pair.classes.values() for p in at) == list(range(len(found.reading.units)))
    assert mapped["clean"] == pytest.approx(pair.values[0])
    if found.domain.name != "gene":
        return
    settings = MapSettings(least=1e-12, n_bootstrap=20)
    result = replace(record, map=traced_map(pair, Maps([one_map(pair)], ["it"], settings), settings)).result()
    page = result.page()
    assert "<h2>Tracing map</h2>" in page
    assert "<img src=x" not in page
    assert page.count('class="map"') == 6
    assert result.summary["map"]["moved"] == pytest.approx(abs(pair.moved))
    assert any(line.startswith("tracing map: Corrupting the cause moves") for line in result.told())
    assert record.summary["map"] is None


def test_a_saved_trace_is_the_same(shown, tmp_path):
    *_, record = shown
    result = record.result()
    with open_run(tmp_path / "run", command="trace", seed=0, inputs={}, overwrite=False) as run:
        result.write(run)
    again = TraceResult.load(tmp_path / "run")
    assert again.to_dict() == to_jsonable(result.summary)
    assert (tmp_path / "run" / f"{record.traced.domain.name}_signed.svg").is_file()


def test_a_protein_is_shown_on_its_structure(tmp_path):
    pytest.importorskip("gemmi", reason="structure files are read by gemmi")
    subject = load_subject(save(tmp_path / "subject", "protein"), domain="protein")
    found = trace(subject, tiny.random_dictionary(subject), GB1, "mask:7", QUICK)
    record = Record(found, "tiny", "random", FeatureTables(), None, structure=PGA)
    result = record.result()
    tracks = {track["name"]: track["values"] for track in result.view["structure"]["data"]["tracks"]}
    for i, unit in enumerate(result.units):
        assert tracks["mass"][i] == pytest.approx(unit["mass"], rel=1e-3)
        assert tracks["raises the target"][i] - tracks["lowers the target"][i] == pytest.approx(unit["score"], rel=1e-3)
    with open_run(tmp_path / "run", command="trace", seed=0, inputs={}, overwrite=False) as run:
        result.write(run)
    assert 'href="structure.html"' in (tmp_path / "run" / "report.html").read_text()
    assert "Chain A: 56 of 56 residues" in (tmp_path / "run" / "structure.html").read_text()
    with pytest.raises(InputError, match=r"no chain of 1pga\.pdb matches"):
        check_structure(PGA, domain_of("protein"), VH)
    with pytest.raises(InputError, match="a structure shows residues"):
        check_structure(PGA, domain_of("reaction"), ESTER)


@pytest.mark.parametrize(
    ("domain", "text", "reason"),
    [
        ("protein", "MKVC*", "stop codon"),
        ("protein", "mkvc", "capitals"),
        ("protein", "", "empty"),
        ("reaction", "CCO>>", "no product"),
        ("reaction", "CCO", "arrows"),
    ],
)
def test_texts_that_are_none_of_the_domain(domain, text, reason, tmp_path):
    subject = load_subject(save(tmp_path, domain), domain=domain)
    with pytest.raises(InputError, match=reason):
        trace(subject, tiny.random_dictionary(subject), text, "mask:1", QUICK)


def test_reactions_keep_their_numbers(shown):
    *_, found, _ = shown
    if found.domain.name == "reaction":
        with pytest.raises(InputError, match="numbered as written"):
            domain_of("reaction").renumbered(found.reading, range(found.reading.n_elements))
