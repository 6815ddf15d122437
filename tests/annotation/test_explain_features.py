import json
import re
from pathlib import Path

import polars as pl
import pytest

from isotrace.annotation.explain.explain_features import explain_features
from isotrace.annotation.nulls.sources import dictionary_sites
from isotrace.datasets.annotated import prepare
from isotrace.datasets.inputs import read_inputs
from isotrace.dictionaries.saving import load_dictionary
from isotrace.domains.molecule.domain import MOLECULE
from isotrace.subjects.subject import load_subject

HELD_OUT = Path(__file__).parents[1] / "data" / "heldout.smi"


class Oracle:
    """Answers what the feature really does on each text, read one text at a time."""

    def __init__(self, fires):
        self.fires, self.prompts = fires, []

    def ask(self, messages):
        prompt = messages[-1]["content"]
        self.prompts.append(prompt)
        if "is said to fire" not in prompt:
            return json.dumps({"explanation": "what it fires on"})
        items = re.findall(r"^(\d+)\. (.*)$", prompt, flags=re.MULTILINE)
        return json.dumps({"fires": [int(i) for i, text in items if self.fires(text)]})


@pytest.fixture(scope="module")
def loaded():
    subject = load_subject("bundled:molm")
    dictionary = load_dictionary("bundled:molm-clt", subject)
    rows, _ = read_inputs(HELD_OUT)
    return subject, dictionary, prepare(subject, MOLECULE, rows.head(100), [], seed=0)


def fires(subject, dictionary, layer: int, feature: int, text: str) -> bool:
    site = next(site for site in dictionary_sites("dictionary", dictionary) if site.layer == layer)
    captured = subject.run(subject.tokenize([text]), capture=[site.hookpoint], logits=False).captured
    return feature in site.encode(captured[site.hookpoint][0])[1]


def test_the_items_are_what_the_feature_really_does(loaded):
    subject, dictionary, data = loaded
    site = dictionary_sites("dictionary", dictionary)[1]
    # Of a dictionary any feature will do that fires on about half of the sequences.
    counts = {}
    for reading in data.readings[::5]:
        captured = subject.run(subject.tokenize([reading.text]), capture=[site.hookpoint], logits=False).captured
        for feature in set(site.encode(captured[site.hookpoint][0])[1].tolist()):
            counts[feature] = counts.get(feature, 0) + 1
    feature = min(counts, key=lambda f: abs(counts[f] - 10))
    features = pl.DataFrame(
        {
            "layer": [site.layer] * 3,
            "feature": [feature, feature + 1, feature + 2],
            "label": ["unexplained", "element: C", "unexplained"],
            "density": [0.1, 0.9, 0.0],
        },
        schema_overrides={"layer": pl.Int32},
    )
    associations = pl.DataFrame(
        {
            "source": ["dictionary", "neurons", "dictionary"],
            "layer": [site.layer] * 3,
            "feature": [feature] * 3,
            "concept": ["element: O", "element: N", "element: F"],
            "feature_rank": [1, 1, 2],
            "q": [0.01, 0.01, 0.5],
            "f1": [0.75, 0.9, 0.6],
        }
    )
    oracle = Oracle(lambda text: fires(subject, dictionary, site.layer, feature, text))
    args = features, associations, data, subject, dictionary
    found = explain_features(*args, oracle, n_features=1, seed=0)
    row = found.row(0, named=True)
    assert (found.height, row["layer"], row["feature"]) == (1, site.layer, feature)
    assert (row["explanation"], row["balanced_accuracy"], row["reason"]) == ("what it fires on", 1, None)
    assert "element: O (f1 0.75)" in oracle.prompts[0]
    assert not re.search("element: [NF]", oracle.prompts[0])

    opposite = Oracle(lambda text: not fires(subject, dictionary, site.layer, feature, text))
    row = explain_features(*args, opposite, n_features=1, seed=0).row(0, named=True)
    assert (row["explanation"], row["text"], row["balanced_accuracy"]) == (None, "what it fires on", 0)
    assert "does not tell" in row["reason"]


def test_a_feature_that_cannot_be_asked_about_says_why(loaded):
    subject, dictionary, _ = loaded
    features = pl.DataFrame(
        {"layer": [0], "feature": [0], "label": ["unexplained"], "density": [1e-6]},
        schema_overrides={"layer": pl.Int32},
    )
    associations = pl.DataFrame(schema={"source": pl.String, "feature_rank": pl.Int32, "q": pl.Float64})
    some = prepare(subject, MOLECULE, read_inputs(["CCO", "CCN", "c1ccccc1", "CC(=O)O"])[0], [], seed=0)
    found = explain_features(features, associations, some, subject, dictionary, Oracle(None), n_features=5, seed=0).row(
        0, named=True
    )
    assert found["explanation"] is None
    assert "5 of each are needed" in found["reason"]
