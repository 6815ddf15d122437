"""`mutation:A24G:K31R`: the same number as a plain loop over transformers, and refusals that say what to do."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

import published_layouts
import tiny
from isotrace.attribution.trace import TraceConfig, trace
from isotrace.base.errors import InputError, SubjectError
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.domains.domain import domain_of
from isotrace.domains.mutations import Mutation, mutated, mutations, variant
from isotrace.report.trace.payload import trace_view
from isotrace.report.trace.record import Record
from isotrace.subjects.subject import load_subject
from isotrace.subjects.targets import check_target, look_at_target, parse_target

PROTEIN = "MTYKLILNGKTLKGETTTEA"


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("layouts"), {}

    def folder(name):
        if name not in made:
            made[name] = published_layouts.make(name, root / name)
        return made[name]

    return folder


@pytest.fixture(scope="module")
def esm(layout):
    return load_subject(layout("esm2"), domain="protein")


def plain(folder, subject, text, changes):
    """Σ log p(after) − log p(before), by transformers alone."""
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    ids = subject.tokenizer(text, return_tensors="pt")["input_ids"]
    vocabulary, hidden = subject.tokenizer.get_vocab(), ids.clone()
    for one in changes:
        assert int(ids[0, int(one[1:-1])]) == vocabulary[one[0]]
        hidden[0, int(one[1:-1])] = subject.tokenizer.mask_token_id
    with torch.no_grad():
        found = model(input_ids=hidden, attention_mask=torch.ones_like(ids)).logits.log_softmax(-1)[0]
    return sum(float(found[int(c[1:-1]), vocabulary[c[-1]]] - found[int(c[1:-1]), vocabulary[c[0]]]) for c in changes)


@pytest.mark.parametrize("name", ["esm2", "esm1b", "protbert"])
def test_the_value_is_that_of_a_plain_loop(layout, name):
    subject = load_subject(layout(name), domain="protein")
    batch = subject.tokenize([PROTEIN])
    spelled = PROTEIN if name != "protbert" else " ".join(PROTEIN)
    for changes in (["M1A"], ["T2A", "K4R"], ["A20W", "L7V", "M1K"]):
        target = parse_target("mutation:" + ":".join(changes), subject, batch)
        prepared = target.prepare(subject, batch)
        value = float(target.value(subject, prepared, target.hidden(subject, prepared)))
        assert value == pytest.approx(plain(layout(name), subject, spelled, changes), abs=1e-5)
        assert target.asked == tuple(int(c[1:-1]) for c in changes)
        assert (prepared.ids == subject.mask_id).nonzero()[:, 1].tolist() == sorted(target.asked)
        assert target.unit == "log-odds"
        assert abs(value) > 1e-3


def test_sites_count_residues_where_blanks_stand_between(esm):
    batches = [esm.tokenize([text]) for text in (PROTEIN, " ".join(PROTEIN))]
    one, other = (parse_target("mutation:K4R", esm, batch) for batch in batches)
    assert one == other


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("K5R", "mutation K5R does not fit: L stands there"),
        ("A24G", "its residues count from 1 to 20"),
        ("T0A", "its residues count from 1 to 20"),
        ("K4R:K4A", "residue 4 twice"),
        ("K4X", "X, which is none of the twenty"),
        ("U4K", "U, which is none of the twenty"),
        ("K4*", "stop codon"),
        ("k4r", "write K4R, in capitals"),
        ("K4K", "changes nothing"),
        ("K4", "write A24G"),
        ("K1999R", "takes 1026 tokens|takes .* tokens"),
    ],
)
def test_mutations_that_do_not_fit_are_refused(esm, asked, says):
    with pytest.raises(InputError, match=says):
        check_target(f"mutation:{asked}", esm)
        parse_target(f"mutation:{asked}", esm, esm.tokenize([PROTEIN]))


def test_what_cannot_be_asked_is_told_before_the_first_row(esm, folders, tmp_path):
    with pytest.raises(InputError, match="in capitals"):
        look_at_target("mutation:k4r", tmp_path, "here")
    look_at_target("mutation:K4R:T2A", tmp_path, "here")
    check_target("mutation:K4R", esm)
    with pytest.raises(SubjectError, match="is of the domain molecule: ask a subject of proteins"):
        check_target("mutation:C4S", tiny.load_tiny(folders["bert"]))
    with pytest.raises(SubjectError, match=r"reads from left to right .* ask for diff:POS:A:B"):
        check_target("mutation:C4S", load_subject(folders["gpt2"], domain="protein"))
    with pytest.raises(InputError, match=r"is no target: use .* mutation:A24G"):
        check_target("mutation:", esm)


def test_a_sequence_after_its_mutations():
    changes = mutations("T2A, K4R")
    assert mutated(PROTEIN, changes) == "MAYR" + PROTEIN[4:]
    assert [str(one) for one in changes] == ["T2A", "K4R"]
    rng = np.random.default_rng(0)
    for _ in range(20):
        site = int(rng.integers(1, 21))
        other = mutated(PROTEIN, [Mutation(PROTEIN[site - 1], site, "W")])
        assert mutated(other, [Mutation("W", site, PROTEIN[site - 1])]) == PROTEIN
    assert variant(domain_of("protein"), " ".join(PROTEIN), "mutation:T2A:K4R") == mutated(PROTEIN, changes)
    with pytest.raises(InputError, match="changes residues, and this is of the domain molecule"):
        variant(domain_of("molecule"), "CCO", "mutation:C1O")
    for wrong in (Mutation("M", 2, "A"), Mutation("M", 0, "A"), Mutation("M", 21, "A")):
        with pytest.raises(InputError):
            mutated(PROTEIN, [wrong])


def test_why_a_variant_is_bad_is_traced_to_a_page(esm):
    config = TraceConfig(max_features=40, n_nodes=4, n_controls=2, circuit="effects")
    found = trace(esm, tiny.random_dictionary(esm), PROTEIN, "mutation:K4R:L7V", config)
    assert found.graph.completeness_error() < 1e-4
    assert {*found.hidden} == {*range(20)} - {3, 6}  # what is masked already cannot be hidden
    record = Record(found, "esm", "random", FeatureTables(), None, None)
    result = record.result()
    assert [token["pos"] for token in trace_view(record)["tokens"] if token["masked"]] == [4, 7]
    assert result.summary["target"]["name"] == "mutation:K4R:L7V"
    assert "log-odds of K4R:L7V, 2 sites masked together" in result.page()
