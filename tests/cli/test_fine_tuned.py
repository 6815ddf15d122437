"""A fine-tuned subject from the shell: its dictionary, a trace of its class, and what it cannot be asked."""

import json

import pytest
import torch

import isotrace
import tiny
from isotrace.activations.harvest import mask_rate_of
from isotrace.base.errors import IsotraceError, SubjectError
from isotrace.evaluation.fidelity import evaluate
from isotrace.training import loop
from shell import said

CONFIG = """
[dictionary]
n_features = 12
k = 3
[training]
batch_tokens = 64
dead_after = 128
[stream]
block_tokens = 128
harvest_tokens = 64
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """(folder of a classifier, of its dictionary, of which `train` has made it, file of molecules)."""
    root = tmp_path_factory.mktemp("tuned")
    model = tiny.tiny_model("esm-rotary", "ForSequenceClassification", id2label={0: "inactive", 1: "active"})
    subject = tiny.save_subject(model, root / "tuned")
    (root / "data.smi").write_text("\n".join(tiny.MOLECULES) + "\n")
    (root / "train.toml").write_text(CONFIG)
    said("subjects", subject, "--domain", "molecule", "--remember")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "STATISTICS_TOKENS", 128)
        how = ["--architecture", "crosslayer", "--tokens", 256, "--config", root / "train.toml"]
        said("train", subject, *how, "--data", root / "data.smi", "--out", root / "clt")
    return subject, root / "clt", root / "data.smi"


def test_the_head_and_its_labels_are_told(tuned):
    facts = json.loads(said("subjects", tuned[0], "--json"))
    told = {"reads": "sequence", "pool": "cls", "problem": "single_label_classification"}
    assert facts["task_head"] == told | {"labels": ["inactive", "active"]}
    assert not facts["language_model_head"]
    text = said("subjects", tuned[0])
    assert "task head: reads sequence; pool cls; problem single_label_classification; labels inactive, active" in text
    assert "head of sequences: inactive, active" in repr(isotrace.load_subject(tuned[0]))


def test_a_class_is_traced_and_saved(tuned, tmp_path):
    subject, dictionary, _ = tuned
    few = ["--nodes", 4, "--controls", 4, "--spellings", 3]
    out = tmp_path / "trace"
    asked = ["trace", subject, dictionary, "CC(=O)OCC", "--target", "class:active"]
    found = json.loads(said(*asked, *few, "--out", out, "--json"))
    loaded = isotrace.load_subject(subject)
    batch = loaded.tokenize(["CC(=O)OCC"])
    with torch.no_grad():
        logits = loaded.model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits[0]
    target = found["target"]
    assert target["value"] == pytest.approx(float(logits[1] - logits[0]), rel=1e-4)
    assert target["probability"] == pytest.approx(float(logits.softmax(-1)[1]), rel=1e-4)
    assert (target["unit"], target["description"]) == ("log-odds", "log-odds of active against inactive")
    assert found["graph"]["max_completeness_error"] < 1e-4
    assert len(found["spellings"]["spellings"]) >= 3
    assert "log-odds of active against inactive" in (out / "report.html").read_text()
    assert isotrace.load(out).to_dict()["target"] == target


def test_a_label_follows_its_atom_through_spellings(tmp_path):
    """Of every spelling the token of the same atom is read."""
    model = tiny.tiny_model("bert", "ForTokenClassification", id2label={0: "no", 1: "site"})
    subject = tiny.load_tiny(tiny.save_subject(model, tmp_path / "sites"))
    dictionary = tiny.random_dictionary(subject)
    found = isotrace.trace(subject, dictionary, "NCCO", "label:1:site", nodes=4, controls=4, spellings=4).to_dict()
    spelled = [(one["text"], one["value"]) for one in found["spellings"]["spellings"]]
    for text, value in spelled:
        batch = subject.tokenize([text])
        with torch.no_grad():
            logits = subject.model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits[0]
        no, site = logits[subject.tokens(batch.ids[0]).index("N")].tolist()
        assert value == pytest.approx(site - no, rel=1e-4)
    assert any(not text.startswith("N") for text, _ in spelled)


def test_fidelity_is_that_of_its_own_class(tuned, tmp_path):
    """Of each molecule the class that the classifier finds most probable, in a pass of transformers' own."""
    subject, dictionary, data = tuned
    found = json.loads(said("evaluate", subject, dictionary, "--data", data, "--no-controls", "--out", tmp_path / "run",
                            "--json"))  # fmt: skip
    loaded = isotrace.load_subject(subject)
    batch = loaded.tokenize(tiny.MOLECULES)
    with torch.no_grad():
        logits = loaded.model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
    assert (found["objective"], found["n_predicted"], found["n_masked"]) == ("classes", len(tiny.MOLECULES), 0)
    assert found["clean"]["top1"] == 1
    assert found["clean"]["cross_entropy"] == pytest.approx(float(-logits.log_softmax(-1).amax(-1).mean()), rel=1e-5)
    (one,) = found["dictionaries"]
    free, ablated = one["free_running"], one["ablated"]["cross_entropy"]
    share = (ablated - free["cross_entropy"]) / (ablated - found["clean"]["cross_entropy"])
    assert free["loss_recovered"] == pytest.approx(share, rel=1e-4)
    assert "10\n    times its own class" in (tmp_path / "run" / "report.html").read_text()


def test_fidelity_of_tokens_and_of_numbers(tmp_path):
    """Every token that is no special one has a class; a number has none, and is refused."""
    labels = {"id2label": {0: "no", 1: "site"}}
    subject = tiny.load_tiny(
        tiny.save_subject(tiny.tiny_model("gpt2", "ForTokenClassification", **labels), tmp_path / "s")
    )
    found = evaluate(subject, tiny.random_dictionary(subject), ["CCO", "N"], n_bootstrap=20)
    assert found["n_predicted"] == 4
    number = tiny.tiny_model("gpt2", "ForSequenceClassification", num_labels=1)
    number = tiny.load_tiny(tiny.save_subject(number, tmp_path / "n"))
    with pytest.raises(SubjectError, match="no head of one class among several, so no cross-entropy"):
        evaluate(number, tiny.random_dictionary(number), ["CCO"])


def test_a_label_is_checked_before_anything_is_loaded(tuned, monkeypatch):
    monkeypatch.setattr("isotrace.verbs.loading.load_subject", lambda *_, **__: pytest.fail("loaded"))
    for target, reason in (("class:toxic", "no output"), ("label:2:active", "reads sequences"), ("class:active", None)):
        with pytest.raises(IsotraceError if reason else pytest.fail.Exception, match=reason or "loaded"):
            isotrace.trace(str(tuned[0]), str(tuned[1]), "CCO", target)


def test_what_a_fine_tuned_subject_cannot_be_asked(tuned):
    subject, dictionary, _ = tuned
    for arguments, reason in (
        (["trace", subject, dictionary, "CCO", "--target", "mask:1"], "no language-model head.*use class:LABEL"),
        (["trace", subject, dictionary, "CCO", "--target", "class:toxic"], "'toxic', which is no output"),
        (["trace", subject, dictionary, "CCO", "--target", "class"], "is no target: use mask.*class:LABEL"),
        (["trace", subject, "bundled:molm-clt", "CCO", "--target", "class:active"], "trained on|belongs|other"),
    ):
        with pytest.raises(IsotraceError, match=reason) as found:
            said(*arguments)
        assert "\n" not in str(found.value)


def test_nothing_is_masked_for_it_unless_asked(tuned, folders):
    classifier = isotrace.load_subject(tuned[0])
    assert mask_rate_of(classifier, None) == 0
    assert mask_rate_of(classifier, 0.2) == 0.2
    assert mask_rate_of(tiny.load_tiny(folders["esm-rotary"]), None) > 0
    with pytest.raises(SubjectError, match="no language-model head"):
        classifier.prepare_prediction(classifier.tokenize(["CCO"]), 1)
