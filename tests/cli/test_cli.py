"""The commands as a user meets them, on the bundled subject and dictionary."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import tiny
from isotrace.base.errors import InputError, RunError
from isotrace.base.result import load
from isotrace.cli import main
from isotrace.dictionaries.saving import dictionary_folder, reference, save_dictionary
from isotrace.subjects.sources.source import assets
from isotrace.subjects.subject import load_subject
from isotrace.verbs.corpus import domain_check, read_corpus, usable
from isotrace.verbs.demo import TABLE
from isotrace.verbs.trace import TraceRequest

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
# where a trace is needed, whichever
SMALL = ("--max-features", "20", "--nodes", "4", "--controls", "2", "--spellings", "0", "--circuit", "effects")
QUICK = ("--max-features", "60", "--nodes", "8", "--controls", "20", "--spellings", "2", "--circuit", "effects")
BUNDLED = ("bundled:molm", "bundled:molm-clt")


@pytest.fixture
def isotrace(capsys, monkeypatch):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["isotrace", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
            sys.exit(0)
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory):
    """A copy of the bundled dictionary that a test may damage."""

    def copy(name):
        folder = tmp_path_factory.mktemp(name) / "clt"
        shutil.copytree(dictionary_folder("bundled:molm-clt"), folder)
        return folder

    return copy


def test_trace_prints_one_json_object_and_the_same_again(isotrace):
    arguments = ("trace", *BUNDLED, ASPIRIN, "--target", "probe:bbb", "--json", *QUICK)
    code, out, _ = isotrace(*arguments)
    assert code == 0
    found = json.loads(out)
    assert {"kind", "name", "value"} <= set(found["target"])
    assert {"n_nodes", "n_edges", "replacement_score", "completeness_score", "max_completeness_error"} <= set(
        found["graph"]
    )
    for mode in ("free_running", "teacher_forced"):
        assert {"loss_recovered", "top1_agreement"} <= set(found["fidelity"][mode])
    circuit, control = found["circuit"], found["circuit"]["control"]
    assert {"n_features", "full", "empty", "value", "error", "removed", "reproduces", "reason"} <= set(circuit)
    assert {"error_mean", "error_ci", "removed_mean", "removed_ci"} <= set(control)
    assert circuit["error"] == abs(circuit["value"] - circuit["full"])
    assert circuit["neurons"]["n"] == circuit["n_features"] == len(found["features"])
    assert all(f["effect"] * (circuit["full"] - circuit["empty"]) > 0 for f in found["supporters"])
    assert all(f["effect"] * (circuit["full"] - circuit["empty"]) < 0 for f in found["opponents"])
    assert control["n"] >= 20
    assert {"pearson_frozen", "pearson_free_running"} <= set(found["verification"])
    assert [u["symbol"] for u in found["units"]] == list("CCOOCCCCCCCOO")
    assert [u["index"] for u in found["units"]] == list(range(13))
    assert all({"layer", "feature", "label", "f1", "influence"} <= set(f) for f in found["features"])
    lanes = sum(u["mass"] for u in found["units"]) + sum(s["score"] for s in found["syntax"])
    assert lanes == pytest.approx(1, abs=1e-9)
    assert found["graph"]["max_completeness_error"] < 1e-4
    assert isotrace(*arguments)[1] == out


@pytest.mark.parametrize(
    ("smiles", "target", "says"),
    [
        ("C1CC", "probe:bbb", "ring closure 1"),
        ("c1cccc1", "probe:bbb", "kekulize"),
        ("CC(C)(C)(C)C", "probe:bbb", "valence"),
        ("C?C", "probe:bbb", "no SMILES"),
        ("C" * 400, "probe:bbb", "tokens"),
        ("", "probe:bbb", "empty"),
        ("   ", "probe:bbb", "empty"),
        ("CCO", "mask:77", "out of range"),
        ("CCO", "mask:-1", "out of range"),
        ("CCO", "mask:0", "<cls>"),
        ("CCO", "mask:x", "out of range"),
        ("CCO", "mask:1:Zz", "no token"),
        ("CCO", "diff:1:C", "no two tokens"),
        ("CCO", "probe:weight", "no probe"),
        ("CCO", "nonsense", "no target"),
        ("missing.csv", "probe:bbb", "missing.csv"),
    ],
)
def test_an_input_that_cannot_be_used_is_one_line_and_exit_code_2(isotrace, smiles, target, says):
    code, out, err = isotrace("trace", *BUNDLED, smiles, "--target", target, "--json", *SMALL)
    assert code == 2
    assert out == ""
    assert says in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def corrupt(path, how):
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "flipped":
        data[len(data) // 2] ^= 1
    elif how == "nan":
        tensors = load_file(path)
        name = max(tensors, key=lambda n: tensors[n].numel())
        tensors[name].view(-1)[0] = torch.nan
        save_file(tensors, path, metadata={"format": "pt"})
        return
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["truncated", "flipped", "nan"])
def test_damaged_dictionary_weights_are_refused(isotrace, dictionary, how):
    folder = dictionary(how)
    corrupt(folder / "weights.safetensors", how)
    code, _, err = isotrace("trace", "bundled:molm", folder, "CCO", "--target", "probe:bbb", "--json")
    assert code == 4
    assert err.startswith("error: weights")
    assert err.count("\n") == 1


@pytest.mark.parametrize("recorded", [True, False], ids=["with-hash", "without-hash"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "nan"])
def test_damaged_subject_weights_are_refused(isotrace, tmp_path, how, recorded):
    """Without a recorded hash a flipped bit is noticed by the dictionary, which knows its subject's hash."""
    folder = tmp_path / "molm"
    shutil.copytree(assets() / "molm", folder)
    if not recorded:
        (folder / "subject.json").unlink()
    corrupt(folder / "model.safetensors", how)
    arguments = ("trace", folder, "bundled:molm-clt", "CCO", "--target", "mask:1", "--json", "--domain", "molecule")
    code, _, err = isotrace(*arguments)
    assert code == (4 if how == "flipped" and not recorded else 3)
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_dictionary_of_another_subject_or_range_is_refused(isotrace, dictionary, folders):
    other = ("--target", "mask:1", "--json", "--domain", "molecule")
    code, _, err = isotrace("trace", folders["esm-rotary"], "bundled:molm-clt", "CCO", *other)
    assert code == 4
    assert "was trained on" in err
    assert "weights_sha256" in err
    folder = dictionary("range")
    record = json.loads((folder / "dictionary.json").read_text())
    record["config"]["layers"] = [layer + 1 for layer in record["config"]["layers"]]
    (folder / "dictionary.json").write_text(json.dumps(record))
    code, _, err = isotrace("trace", "bundled:molm", folder, "CCO", *other)
    assert code == 4
    assert "covers layers (1, 2, 3, 4, 5, 6)" in err
    assert "the subject has 6" in err


def test_a_folder_that_cannot_be_written_is_an_error(isotrace, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    code, _, err = isotrace("trace", *BUNDLED, "CCO", "--target", "mask:1", "--out", blocker / "run", *QUICK)
    assert code == 5
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_in_a_file_of_many_bad_rows_are_rejected_and_the_rest_is_done(isotrace, tmp_path):
    table = tmp_path / "many.csv"
    table.write_text("name,smiles\nethanol,CCO\nbroken,C1CC\nblank,\nunknown,C?C\npyridine,c1ccncc1\n")
    out = tmp_path / "out"
    code, printed, _ = isotrace("trace", *BUNDLED, table, "--target", "mask:1", "--out", out, "--json", *SMALL)
    assert code == 0
    found = json.loads(printed)
    assert [t["name"] for t in found["traces"]] == ["ethanol", "pyridine"]
    assert [r["index"] for r in found["rejects"]] == [1, 2, 3]
    rejects = pl.read_parquet(out / "summary" / "rejects.parquet").sort("index")
    assert rejects["index"].to_list() == [1, 2, 3]
    assert all(rejects["reason"])
    pages = list(out.glob("0*/report.html"))
    assert len(pages) == 2
    index = (out / "summary" / "report.html").read_text()
    assert all(f"../{page.parent.name}/report.html" in index for page in pages)
    assert "ring closure 1" in index
    assert isotrace("report", out / "summary")[0] == 0
    assert (out / "summary" / "report.html").read_text() == index
    table.write_text("smiles\nC1CC\n")
    code, _, err = isotrace("trace", *BUNDLED, table, "--target", "mask:1", "--json", *SMALL)
    assert code == 2
    assert "no row" in err


def test_the_run_folder_holds_what_the_docs_promise(isotrace, tmp_path):
    out = tmp_path / "run"
    code, printed, _ = isotrace("trace", *BUNDLED, "CC(N)C(=O)O", "--target", "diff:3:N:O", "--out", out, *QUICK)
    assert code == 0
    assert "report.html" in printed
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert set(manifest["files"]) == {p.name for p in out.iterdir()} - {"manifest.json"}
    summary = json.loads((out / "trace.json").read_text())
    assert summary["target"]["kind"] == "diff"
    assert pl.read_parquet(out / "features.parquet").height == summary["circuit"]["n_features"]
    assert pl.read_parquet(out / "edges.parquet").height == summary["graph"]["n_edges"]
    assert pl.read_parquet(out / "controls.parquet").height == 20


def test_the_demo_writes_a_page_for_every_trace_and_one_that_lists_them(isotrace, tmp_path, monkeypatch):
    monkeypatch.setattr("isotrace.verbs.demo.DRUGS", (("ethanol", "CCO", 2),))
    short = pl.read_csv(TABLE, infer_schema=False).head(26)
    short.write_csv(tmp_path / "short.csv")
    monkeypatch.setattr("isotrace.verbs.demo.TABLE", tmp_path / "short.csv")
    few = {"nodes": 4, "controls": 2, "spellings": 0}

    def small(**given):
        own = {} if given.get("quick") else few if "against" in given else few | {"max_features": 20}
        return TraceRequest(**given, **own)

    monkeypatch.setattr("isotrace.verbs.trace.TraceRequest", small)
    code, printed, _ = isotrace("demo", "--out", tmp_path / "demo", "--json")
    assert code == 0
    found = json.loads(printed)
    assert [t["target"]["name"] for t in found["traces"]] == ["probe:logd", "mask:3"]
    listed = (tmp_path / "demo" / "summary" / "report.html").read_text()
    for place in ("probe-logd", "mask-3"):
        folder = tmp_path / "demo" / "ethanol" / place
        assert f"../ethanol/{place}/report.html" in listed
        assert f"../ethanol/{place}/card.png" in listed
        manifest, page = json.loads((folder / "manifest.json").read_text()), (folder / "report.html").read_text()
        assert manifest["command"].startswith("isotrace trace bundled:molm bundled:molm-clt CCO --target")
        assert manifest["command"] in page
        assert '<a href="../../summary/report.html">' in page
        card = (folder / "card.svg").read_text()
        (folder / "card.svg").unlink()
        assert isotrace("report", folder)[0] == 0
        assert (folder / "card.svg").read_text() == card
        assert (folder / "report.html").read_text() == page
        assert isotrace("report", folder, "--out", tmp_path / f"{place}.html")[0] == 0
        assert not re.search(r"card\.png|summary/report", (tmp_path / f"{place}.html").read_text())
    assert '<a href="../index.html">' in listed
    assert found["index"] == str(tmp_path / "demo" / "index.html")
    home = (tmp_path / "demo" / "index.html").read_text()
    for place in ("summary", "pair", "solubility", "substructures"):
        assert f"{place}/report.html" in home
        assert (tmp_path / "demo" / place / "report.html").is_file()
    assert all((tmp_path / "demo" / name).is_file() for name in re.findall(r'src="([^"]*card.png)"', home))
    assert home.count("card.png") == 4
    assert found["verdict"] in home
    screened = load(tmp_path / "demo" / "substructures")
    assert len(repr(screened)) <= 1_000
    assert {"Compound", "log S", "value"} <= {*screened.tables["molecules"].columns}
    # what is done is kept, of another table nothing is
    monkeypatch.setattr("isotrace.verbs.probe.fit_probe", lambda *_, **__: pytest.fail("fitted again"))
    monkeypatch.setattr("isotrace.verbs.trace.trace", lambda *_, **__: pytest.fail("traced again"))
    assert isotrace("demo", "--out", tmp_path / "demo", "--json")[1] == printed
    short.head(25).write_csv(tmp_path / "short.csv")
    with pytest.raises(pytest.fail.Exception, match="fitted again"):
        isotrace("demo", "--out", tmp_path / "demo", "--json")


def test_doctor_finds_a_healthy_installation(isotrace, tmp_path):
    code, out, err = isotrace("doctor", "--out", tmp_path, "--json")
    found = json.loads(out)
    assert [c["check"] for c in found["checks"] if not c["ok"]] == []
    assert code == 0, err


def test_doctor_finds_what_is_wrong(monkeypatch):
    """Also under `python -O`, which leaves assertions out."""
    from isotrace.domains import molecule
    from isotrace.verbs import doctor
    from isotrace.verbs.tracing import Tracer

    monkeypatch.setattr(molecule, "token_map", lambda *_: [])
    with pytest.raises(RunError, match="miss the atoms"):
        doctor.token_maps()
    answers = iter(("one", "another"))
    answer = lambda *_: SimpleNamespace(to_dict=lambda: {"value": next(answers)})  # noqa: E731
    monkeypatch.setattr(Tracer, "trace", answer)
    with pytest.raises(RunError, match="traces differ"):
        doctor.determinism()


@pytest.mark.parametrize(
    "command",
    [("trace", *BUNDLED, "CC", "--target", "mask:1"), ("harvest", "bundled:molm", "--data", "x", "--tokens", "9")],
)
def test_a_negative_seed_is_a_usage_error(isotrace, tmp_path, command):
    code, _, err = isotrace(*command, "--out", tmp_path / "run", "--seed", "-1")
    assert code == 2
    assert "--seed" in err


def test_doctor_fails_where_it_cannot_write(isotrace, tmp_path, monkeypatch):
    monkeypatch.setattr("isotrace.verbs.doctor.determinism", lambda: "found healthy above")
    (tmp_path / "file").write_text("in the way")
    code, out, _ = isotrace("doctor", "--out", tmp_path / "file" / "x", "--json")
    assert code == 5
    assert [c["check"] for c in json.loads(out)["checks"] if not c["ok"]] == ["write access"]


VH = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFT"
    "ISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS"
)


@pytest.mark.parametrize(
    ("domain", "good", "bad", "reason"),
    [
        ("molecule", "CCO", "C1CC", "ring closure 1"),
        ("reaction", "CCO>>CC=O", "CCO>>C1CC", "ring closure 1"),
        ("reaction", "CCO.O>>CC=O", "CCO", ">>"),
        ("protein", "MKTAYIAK", "MKt", "'t' at position 3 is no residue: write residues in capitals"),
        ("antibody", VH, "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "variable domain"),
    ],
)
def test_every_domain_says_what_it_cannot_read(domain, good, bad, reason):
    if domain == "antibody":
        pytest.importorskip("immunum", reason="immunum is not installed: pip install 'isotrace[antibody]'")
    check = domain_check(SimpleNamespace(files=SimpleNamespace(domain=domain)))
    check(good)
    with pytest.raises(InputError, match=reason):
        check(bad)


def test_rows_that_are_none_of_the_domain_are_rejected(folders, tmp_path):
    table = tmp_path / "proteins.fasta"
    table.write_text(">a\nCNCCS\n>b\nCNcN\n>c\nONCO\n")
    subject = load_subject(folders["bert"], domain="protein")
    assert usable(subject, str(table), None, None)[0] == ["CNCCS", "ONCO"]
    corpus, rejects = read_corpus(subject, str(table), None)
    assert len(corpus.ids) == 2
    assert rejects.rows() == [(1, "CNcN", "'c' at position 3 is no residue: write residues in capitals.")]
    with pytest.raises(InputError, match="no domain 'poem'"):
        read_corpus(load_subject(folders["bert"], domain="poem"), str(table), None)


@pytest.fixture
def byte_subject(tmp_path):
    """A GPT-2 with a byte tokenizer, whose token for what is unknown also begins every sequence."""
    model, folder = tiny.tiny_model("gpt2", vocab_size=257), tmp_path / "bytes"
    vocabulary = {symbol: i for i, symbol in enumerate(["<|endoftext|>", *sorted(ByteLevel.alphabet())])}
    inner = Tokenizer(BPE(vocabulary, merges=[], unk_token="<|endoftext|>"))
    inner.pre_tokenizer = ByteLevel(add_prefix_space=False)
    inner.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    end = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=inner, **end).save_pretrained(folder)
    return folder


def test_a_byte_tokenizer_is_read_by_every_command(isotrace, byte_subject, tmp_path):
    data = tmp_path / "data.smi"
    data.write_text("\n".join([*tiny.MOLECULES, "C1CC", "C" * 40]))
    subject = load_subject(byte_subject, domain="molecule")
    assert subject.tokenize(["CCO"]).ids[0, 0] == subject.tokenizer.unk_token_id
    corpus, rejects = read_corpus(subject, str(data), None)
    assert [row[0] for row in rejects.rows()] == [10, 11]
    assert ["".join(subject.tokens(torch.from_numpy(ids[1:]))) for ids in corpus.ids] == tiny.MOLECULES
    sequences, refused = usable(subject, str(data), None, None)
    assert (sequences, refused.rows()) == (tiny.MOLECULES, rejects.rows())
    common = (byte_subject, "--data", data, "--domain", "molecule", "--tokens", "64")
    (tmp_path / "c.toml").write_text("[training]\nbatch_tokens = 32\n")
    options = ("--config", tmp_path / "c.toml", "--architecture", "transcoder", "--features", "8", "--k", "2")
    assert isotrace("train", *common, *options, "--out", tmp_path / "trained")[0] == 0
    for rate in ((), ("--mask-rate", "0")):
        code, out, err = isotrace("harvest", *common, *rate, "--out", tmp_path / f"store{len(rate)}", "--json")
        assert code == 0, err
        assert json.loads(out)["tokens"] == 64
    code, _, err = isotrace("harvest", *common, "--mask-rate", "0.1", "--out", tmp_path / "store", "--json")
    assert (code, err.count("\n")) == (3, 1)
    assert "fills no masks: leave the masking rate out" in err


@pytest.mark.parametrize("kind", ["no head", "no mask token"])
def test_fidelity_needs_a_subject_that_predicts(isotrace, tmp_path, kind):
    from transformers import BertForMaskedLM, BertModel

    model = BertModel if kind == "no head" else BertForMaskedLM
    model(tiny.tiny_model("bert").config).save_pretrained(tmp_path / "bert")
    tokenizer = tiny.tokenizer()
    if kind == "no mask token":
        tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path / "bert")
    subject = tiny.load_tiny(tmp_path / "bert")
    given = {"dtype": torch.float32, "training": {}}
    save_dictionary(tiny.random_dictionary(subject), tmp_path / "features", reference(subject), **given)
    (tmp_path / "many.smi").write_text("\n".join(tiny.MOLECULES))
    arguments = (subject.files.folder, tmp_path / "features", "--data", tmp_path / "many.smi", "--domain", "molecule")
    for controls in ((), ("--no-controls",)):
        code, _, err = isotrace("evaluate", *arguments, *controls)
        assert code == 3
        assert ("has no mask token" if kind == "no mask token" else "has no language-model head") in err
        assert err.count("\n") == 1
