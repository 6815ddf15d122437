"""Checkpoints as they are published load, with one token a residue where they have that, and nothing lost unseen."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import isotrace
import published_layouts
from isotrace.base.errors import InputError, SubjectError
from isotrace.datasets.tasks import PARTS
from isotrace.domains.domain import domain_of
from isotrace.subjects.subject import load_subject
from isotrace.verbs.subjects import subjects

DOMAIN = dict.fromkeys(published_layouts.LAYOUTS, "protein") | {"chemberta": "molecule"}


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("published"), {}

    def folder(name):
        if name not in made:
            made[name] = published_layouts.make(name, root / name)
        return made[name]

    return folder


def proteins(n, seed=0, letters="ACDEFGHIKLMNPQRSTVWYUOBZX"):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice([*letters], size=rng.integers(1, 60))) for _ in range(n)]


@pytest.mark.parametrize("name", ["esm2", "esm1b"])
def test_esm_tokens_are_those_of_transformers(layout, name):
    subject = load_subject(layout(name), domain="protein")
    slow = transformers.EsmTokenizer.from_pretrained(layout(name))
    texts = proteins(1_000)
    for text, (ids, spans, refusal) in zip(texts, subject.tokenized(texts), strict=True):
        assert (ids, refusal) == (slow(text)["input_ids"], None)
        assert spans == ((0, 0), *((i, i + 1) for i in range(len(text))), (0, 0))
    assert [subject.tokenizer.mask_token_id, subject.pad_id, subject.is_special.sum()] == [32, 1, 5]


@pytest.mark.parametrize("text", ["M K V", "<mask>KV", "MKv", "M..-K", "mkvJ LL", "K<null_1>Q", "  MK "])
def test_esm_reads_odd_texts_as_transformers_does(layout, text):
    found = load_subject(layout("esm2"), domain="protein").tokenizer(text)["input_ids"]
    assert found == transformers.EsmTokenizer.from_pretrained(layout("esm2"))(text)["input_ids"]


@pytest.mark.parametrize("name", ["protbert", "prott5"])
def test_residues_are_spaced_for_tokenizers_of_words(layout, name):
    subject, texts = load_subject(layout(name), domain="protein"), ["MKVLW", "M K V L W", " MK VLW"]
    rows = subject.tokenized(texts)
    assert [refusal for *_, refusal in rows] == [None] * 3
    assert rows[0][0] == rows[1][0] == rows[2][0] == subject.tokenizer("M K V L W")["input_ids"]
    for text, (ids, spans, _) in zip(texts, rows, strict=True):
        residues = [(a, b) for a, b in spans if a < b]
        assert [text[a:b] for a, b in residues] == [*"MKVLW"]
        reading = domain_of("protein").read(text, subject.tokens(torch.tensor(ids)), spans)
        assert [e for e in reading.elements if e] == [(0,), (1,), (2,), (3,), (4,)]


def test_an_unknown_residue_is_refused_between_spaces_too(layout):
    with pytest.raises(InputError, match=r"does not know: 'J'; rewrite or drop it"):
        load_subject(layout("protbert"), domain="protein").tokenize(["MKJV"])


def test_a_pickle_is_as_good_as_safetensors(layout, tmp_path):
    shutil.copytree(layout("protbert"), tmp_path / "p")
    state = torch.load(tmp_path / "p" / "pytorch_model.bin", weights_only=True)
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "p" / "model.safetensors", metadata={"format": "pt"})
    one, other = (load_subject(folder, domain="protein") for folder in (layout("protbert"), tmp_path / "p"))
    batch = one.tokenize(["MKVLW"])
    assert torch.equal(one.run(batch).logits, other.run(batch).logits)
    assert one.files.weights_sha256 != other.files.weights_sha256


def changed_words(folder, change):
    words = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(change(words)))


def test_characters_that_a_tokenizer_drops_are_named(layout, tmp_path):
    """Of bytes, without the letters and without a token for the unknown."""
    shutil.copytree(layout("chemberta"), tmp_path / "c")
    changed_words(tmp_path / "c", lambda words: {w: i for w, i in words.items() if w not in ("l", "F", "<unk>")})
    settings = {"tokenizer_class": "RobertaTokenizer", "unk_token": "<pad>"}
    (tmp_path / "c" / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "c" / "merges.txt").write_text("#version: 0.2\n")
    subject = load_subject(tmp_path / "c", domain="molecule")
    refusals = [refusal for *_, refusal in subject.tokenized(["CCl", "FCCl", "CCO"])]
    assert refusals == [
        "its tokenizer leaves out 'l' of 'CCl': rewrite or drop it.",
        "its tokenizer leaves out 'F', 'l' of 'FCCl': rewrite or drop it.",
        None,
    ]


def test_capitals_written_small_are_other_atoms(layout, tmp_path):
    """As an uncased tokenizer has it: C is no c, while residues have no case."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghiklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in words[5:]]
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=64, **published_layouts.SIZES)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    published_layouts.written(tmp_path, vocab="\n".join(words), tokenizer_config={"do_lower_case": True})
    with pytest.raises(InputError, match="reads 'CCO' as 'cco': it was made for other texts"):
        load_subject(tmp_path, domain="molecule").tokenize(["CCO"])
    assert load_subject(tmp_path, domain="protein").tokenize(["MKV"]).ids.shape == (1, 5)


def test_a_vocabulary_of_words_for_smiles_names_the_class(layout):
    with pytest.raises(InputError, match=r"a BertTokenizer\w* takes what stands between blanks for words"):
        load_subject(layout("protbert"), domain="molecule").tokenize(["CCOCC"])


def test_more_tokens_than_embeddings(layout, tmp_path):
    shutil.copytree(layout("chemberta"), tmp_path / "c")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "c")
    tokenizer.add_tokens(["[nH]"])
    tokenizer.save_pretrained(tmp_path / "c")
    with pytest.raises(SubjectError, match=r"has 106 tokens and the model 105 embeddings: .* resize_token_embeddings"):
        load_subject(tmp_path / "c", domain="molecule")


def test_an_adapter_is_not_passed_over(layout, tmp_path):
    shutil.copytree(layout("chemberta"), tmp_path / "beside")
    (tmp_path / "beside" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(SubjectError, match=r"holds adapter_config.json, but no adapter_model.safetensors"):
        load_subject(tmp_path / "beside", domain="molecule")
    shutil.copytree(layout("chemberta"), tmp_path / "within")
    state = load_file(tmp_path / "within" / "model.safetensors")
    state["roberta.encoder.layer.0.attention.self.query.lora_A.weight"] = torch.ones(4, 16)
    save_file(state, tmp_path / "within" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SubjectError, match=r"holds 1 weights of an adapter, 'roberta.*lora_A.weight' first"):
        load_subject(tmp_path / "within", domain="molecule")


def test_prott5_fills_its_first_sentinel(layout):
    """It has no token called mask: what it was trained to fill is `<extra_id_0>`."""
    subject = load_subject(layout("prott5"), domain="protein")
    assert subject.tokens(torch.tensor([subject.mask_id])) == ["<extra_id_0>"]
    batch, place = subject.prepare_prediction(subject.tokenize(["MKV"]), 1)
    assert (batch.ids[0, 1], place) == (subject.mask_id, 1)


def test_a_sentencepiece_model_names_what_it_needs(layout, monkeypatch):
    monkeypatch.setattr("isotrace.subjects.tokenizers._installed", lambda module: module != "sentencepiece")
    with pytest.raises(SubjectError, match=r"missing, sentencepiece here: pip install 'isotrace\[sentencepiece\]'"):
        load_subject(layout("prott5"), domain="protein")


def test_a_tokenizer_that_does_more_than_look_up_words_is_refused(layout, monkeypatch):
    tokenize = transformers.EsmTokenizer._tokenize
    monkeypatch.setattr(
        transformers.EsmTokenizer, "_tokenize", lambda self, text: tokenize(self, text.replace("é", ""))
    )
    with pytest.raises(SubjectError, match=r"an? EsmTokenizer, runs in Python, keeps no offsets and does more"):
        load_subject(layout("esm2"), domain="protein")


SMILES = [
    f"{'C' * i}{'O' * j}{end}" for i in range(1, 9) for j in (0, 1) for end in ("N", "c1ccccc1", "", "C(=O)NCC=O")
]


# two layouts are read as two others are, and the path behind the reading is the same
ASIDE = [pytest.param(n, marks=[pytest.mark.nightly] * (n in ("esm1b", "protbert"))) for n in published_layouts.LAYOUTS]


@pytest.mark.parametrize("name", ASIDE)
def test_a_published_layout_goes_all_the_way(layout, name, tmp_path):
    """harvest → train → evaluate → annotate → circuit."""
    protein = DOMAIN[name] == "protein"
    texts = proteins(240 if name == "prott5" else 96, letters=published_layouts.RESIDUES) if protein else SMILES
    own = {"subject": str(layout(name)), "domain": DOMAIN[name]}
    harvested = isotrace.harvest(data=texts, tokens=200, out=tmp_path / "store", **own)
    assert harvested.to_dict()["tokens"] >= 200
    isotrace.train(data=texts, architecture="transcoder", features=8, k=2, tokens=200, out=tmp_path / "d", **own)
    own["dictionary"] = tmp_path / "d"
    assert isotrace.evaluate(data=texts[:16], bootstrap=20, controls=False, **own).to_dict()["dictionaries"]
    found = isotrace.annotate(
        data=texts, sources=("dictionary",), permutations=20, bootstrap=20, min_positive=2, spellings=0, effects=False,
        **own,
    )  # fmt: skip
    assert found.to_dict()["rejects"] == []
    letter = "K" if protein else "C"  # how often it stands in a text is what even random weights keep
    table = pl.DataFrame({"sequence": texts, "y": [text.count(letter) / len(text) for text in texts]})
    table = table.with_columns(
        own=pl.int_range(pl.len()).cast(pl.String), part=pl.Series(([*PARTS] * len(texts))[: len(texts)])
    )
    task = {"label": "y", "split": "part", "group": "own", "sizes": (4,), "controls": 2, "bootstrap": 20, "drawn": 1}
    assert isotrace.circuit(data=table, limit=16, **task, **own).to_dict()["sweep"]


def test_a_folder_remembers_its_domain(layout, tmp_path):
    shutil.copytree(layout("esm2"), tmp_path / "e")
    subjects(source=str(tmp_path / "e"), domain="protein", remember=True)
    assert load_subject(tmp_path / "e").files.domain == "protein"
    for given in ({"source": str(tmp_path / "e")}, {"source": "bundled:molm", "domain": "molecule"}):
        with pytest.raises(InputError, match=r"--domain|no folder of yours"):
            subjects(**given, remember=True)
