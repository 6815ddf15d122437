"""Fine-tuned subjects: what transformers' own classes give, and targets that stay affine on the frozen input."""

import copy
import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny
from isotrace.attribution.ablation import ablate_in_frozen
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.influence import total_effects
from isotrace.base.errors import InputError, SubjectError
from isotrace.subjects.conformance import check
from isotrace.subjects.families import HeadPaths
from isotrace.subjects.heads.targets import look_at_head
from isotrace.subjects.heads.task_head import TaskHead
from isotrace.subjects.subject import load_subject
from isotrace.subjects.targets import check_target, parse_target

FAMILIES = ("bert", "roberta", "esm-rotary", "albert", "modernbert", "esmc", "deberta-v2", "gpt2", "llama")
LABELS = {0: "inactive", 1: "active", 2: "in-between"}
SETTINGS = {
    "sequence": ("ForSequenceClassification", {"id2label": LABELS}),
    "token": ("ForTokenClassification", {"id2label": LABELS}),
    "number": ("ForSequenceClassification", {"id2label": {0: "logD"}, "problem_type": "regression"}),
}
TARGETS = {"sequence": "class:active", "token": "label:3:in-between", "number": "output:logD"}
CASES = [(variant, case) for variant in FAMILIES for case in SETTINGS] + [("modernbert-mean", "sequence")]
AUTO = {"ForSequenceClassification": transformers.AutoModelForSequenceClassification,
        "ForTokenClassification": transformers.AutoModelForTokenClassification}  # fmt: skip


def save(variant, case, folder, **changes):
    head, settings = SETTINGS[case]
    name, mean, _ = variant.partition("-mean")
    pooling = {"classifier_pooling": "mean" if mean else "cls"} if name == "modernbert" else {}
    return tiny.save_subject(tiny.tiny_model(name, head, **settings | pooling | changes), folder)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Folder, float32 and float64 subject of every case."""
    root = tmp_path_factory.mktemp("tuned")
    folders = {c: save(*c, root / "-".join(c)) for c in CASES}
    return {c: (f, tiny.load_tiny(f), tiny.in_float64(tiny.load_tiny(f))) for c, f in folders.items()}


@pytest.fixture(scope="module")
def classifier(tuned):
    return tuned["bert", "sequence"][1]


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_outputs_are_those_of_transformers(case, tuned):
    folder, subject, _ = tuned[case]
    batch = subject.tokenize(["CCO", "C[nH]1O=c1CC", "C"])
    plain = AUTO[SETTINGS[case[1]][0]].from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    expected = plain(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
    final, task = subject.run(batch).final, subject.task
    if case[1] == "token":
        found = torch.stack([task.outputs(task.pooled(batch, final, p)) for p in range(batch.ids.shape[1])], 1)
        found, expected = found[batch.mask], expected[batch.mask]
    else:
        found = task.outputs(task.pooled(batch, final))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert expected.std() > 0.01


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_graphs_add_up_and_effects_are_interventions(case, tuned, double):
    subject = tuned[case][2]
    batch = subject.tokenize([tiny.SMILES])
    target = parse_target(TARGETS[case[1]], subject, batch)
    assert target.prepare(subject, batch) is batch, "nothing is hidden from a classifier"
    framing = frame(subject, tiny.random_dictionary(subject), batch, target)
    graph = build_graph(framing, max_features=1_000, batch_size=8)
    assert graph.completeness_error() < 1e-9
    value = float(target.value(subject, batch, target.hidden(subject, batch))[0])
    assert float(graph.preactivation[graph.target]) == pytest.approx(value, rel=1e-9)
    total = total_effects(graph)[: graph.n_features]
    expected = value - ablate_in_frozen(framing, graph.feature_nodes, "zero").double()
    assert tiny.relative(total, expected) < 1e-9
    assert float(expected.abs().max()) > 1e-3


def test_a_head_behind_a_function_is_affine_at_the_input_only(tuned, double):
    """The secant gives the head's own value at the input, and the same slope everywhere; the head itself does not."""
    for variant in ("bert", "modernbert", "deberta-v2", "gpt2"):
        subject = tuned[variant, "sequence"][2]
        framing = frame(subject, tiny.random_dictionary(subject), subject.tokenize([tiny.SMILES]),
                        parse_target("class:active", subject, subject.tokenize([tiny.SMILES])))  # fmt: skip
        task = subject.task
        here = task.pooled(framing.batch, framing.frozen.actual.final)[0]
        read = framing.frozen.task_map(here)
        torch.testing.assert_close(read(here), task.outputs(here), rtol=1e-12, atol=1e-12)
        a, b = torch.randn(2, subject.d_model, generator=torch.Generator().manual_seed(0))
        off = {name: tiny.relative(f(a + b) - f(b), f(a) - f(torch.zeros_like(a)))
               for name, f in (("secant", read), ("head", task.outputs))}  # fmt: skip
        assert off["secant"] < 1e-10
        assert off["head"] < 1e-10 if variant == "gpt2" else off["head"] > 1e-3


def test_an_entry_that_names_the_wrong_head_fails_the_conformance_check(tuned):
    """One that pools all tokens where the model pools the first."""
    for case in (("bert", "sequence"), ("modernbert-mean", "sequence"), ("llama", "sequence"), ("gpt2", "token")):
        assert check(tuned[case][1], ["CCOC", "C"])["task head"] < 1e-4
    wrong = copy.copy(tuned["bert", "sequence"][1])
    wrong.task = TaskHead(wrong.model, HeadPaths("classifier", "mean", "bert.pooler.dense", "tanh"), "sequence", "it")
    with pytest.raises(SubjectError, match=r"task head deviates by .*: the family's entry is wrong"):
        check(wrong, ["CCOC", "C"])


def test_what_the_targets_are(classifier, tuned, tmp_path):
    batch = classifier.tokenize(["CCO"])
    final = classifier.run(batch).final
    a, b, c = classifier.task.outputs(classifier.task.pooled(batch, final))[0].tolist()
    several = load_subject(save("bert", "sequence", tmp_path / "several", problem_type="multi_label_classification"))
    two = load_subject(save("bert", "sequence", tmp_path / "two", id2label={0: "no", 1: "yes"}))
    one = load_subject(save("bert", "sequence", tmp_path / "one", id2label={0: "yes"}))
    said = {}
    for text, value, unit in (
        ("class:active", b - (a + c) / 2, "logit"), ("class:active-inactive", b - a, "log-odds"),
        ("class:in-between", c - (a + b) / 2, "logit"), ("class:in-between-active", c - b, "log-odds"),
        ("class:active-in-between", b - c, "log-odds"), ("output:active", b, "logit"),
    ):  # fmt: skip
        target = parse_target(text, classifier, batch)
        assert float(target.value(classifier, batch, final)) == pytest.approx(value, rel=1e-5)
        assert (target.unit, target.name) == (unit, text)
        said[text] = target.description
    assert said["class:active"] == "logit of active minus the mean logit of the 2 other classes"
    assert said["class:active-in-between"] == "log-odds of active against in-between"
    for subject, text, about in (
        (several, "class:active", "log-odds of active"), (two, "class:yes", "log-odds of yes against no"),
        (one, "class:yes", "problem_type in the config does not say"),
    ):  # fmt: skip
        target = parse_target(text, subject, batch)
        assert about in target.description
        assert target.unit == "log-odds"
    assert parse_target("class:active", several, batch).outputs == (0.0, 1.0, 0.0)
    assert parse_target("class:yes", two, batch).outputs == (-1.0, 1.0)
    token = tuned["bert", "token"][1]
    assert "at position 2 (C)" in parse_target("label:2:active", token, batch).description
    assert parse_target("output:logD", tuned["bert", "number"][1], batch).description == "output logD"


def test_what_is_refused(classifier, tuned, tmp_path, folders):
    number, token = tuned["bert", "number"][1], tuned["bert", "token"][1]
    unnamed = load_subject(save("bert", "sequence", tmp_path / "unnamed", id2label={0: "LABEL_0", 1: "LABEL_1"}))
    assert float(parse_target("class:LABEL_1", unnamed, unnamed.tokenize(["CC"])).outputs[1]) == 1
    plain = tiny.load_tiny(folders["bert"])
    for subject, text, error, reason in (
        (classifier, "class:toxic", InputError, "'toxic', which is no output .* has inactive, active, in-between"),
        (classifier, "class:active-toxic", InputError, "no output"),
        (classifier, "mask:1", SubjectError, "no language-model head.*use class:LABEL, output:NAME or a probe"),
        (classifier, "label:1:active", SubjectError, "reads sequences: use class:LABEL"),
        (unnamed, "class:active", InputError, "LABEL_0, LABEL_1 .*id2label in its config gives no others"),
        (number, "class:logD", InputError, "gives numbers: use output:NAME, it has logD"),
        (token, "class:active", SubjectError, "reads tokens: use label:POS:NAME"),
        (token, "label:x:active", InputError, "position 'x' is "),
        (token, "label:1:toxic", InputError, "no output"),
        (plain, "class:active", SubjectError, "no head of a fine-tuned model.*use a probe, or mask:POS"),
    ):  # fmt: skip
        ways = [check_target, lambda t, s: parse_target(t, s, s.tokenize(["CCO"]))]
        if text not in ("mask:1", "label:x:active"):  # these ask for more than the config
            ways.append(lambda t, s: look_at_head(t, s.files.folder, s.source))
        for ask in ways:
            with pytest.raises(error, match=reason) as found:
                ask(text, subject)
            assert "\n" not in str(found.value)
    with pytest.raises(InputError, match="'0' is none that can be labelled: this input has 1 to 3"):
        parse_target("label:0:active", token, token.tokenize(["CCO"]))


@pytest.mark.parametrize("two_sided", ["bart", "t5-gated"])
def test_a_head_that_is_not_read_is_named(two_sided, tmp_path):
    """It loads all the same: its hidden states have features and probes."""
    folder = tiny.save_subject(tiny.tiny_model(two_sided, "ForSequenceClassification"), tmp_path / "tuned")
    subject = tiny.load_tiny(folder)
    with pytest.raises(SubjectError, match=r"ForSequenceClassification, whose head isotrace does not read") as found:
        check_target("class:LABEL_0", subject)
    assert "it reads those of albert, bert, " in str(found.value)
    look_at_head("class:LABEL_1", folder, "it")  # its labels can be told from the config
    with pytest.raises(InputError, match="no output"):
        look_at_head("class:LABEL_7", folder, "it")


def test_heads_that_do_not_fit_their_weights(tuned, tmp_path):
    """Outputs other than the config's, a pooler that is missing, two outputs of one name."""
    for name, reason in (("other", "size"), ("pooler", "lacks 2 weights, 'bert.pooler"), ("twice", "called 'a': name")):
        folder = tmp_path / name
        shutil.copytree(tuned["bert", "sequence"][0], folder)
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        if name == "other":
            del config["id2label"], config["label2id"]
        elif name == "twice":
            config["id2label"] = {"0": "a", "1": "b", "2": "a"}
        else:
            kept = {key: value for key, value in weights.items() if "pooler" not in key}
            save_file(kept, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(SubjectError, match=reason) as found:
            tiny.load_tiny(folder)
        assert "\n" not in str(found.value)


def test_padding_that_the_head_passes_over(tuned, tmp_path):
    """The last token is the last that is not padding to the config, also where the text itself ends in one; without a
    padding token it is the last real one."""
    for pad in (1, 2, None):
        folder = save("gpt2", "sequence", tmp_path / str(pad), pad_token_id=pad)
        subject = tiny.load_tiny(folder)
        batch = subject.tokenize(["CCO", "C"])
        last = subject.task.weights(batch).argmax(1).tolist()
        assert last == ([3, 1] if pad == 2 else [4, 2])
