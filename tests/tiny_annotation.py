"""What tests of annotation share: random tables of concepts, a small domain, a subject and planted features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from polars.testing import assert_frame_equal
from scipy import sparse

import tiny
from isotrace.annotation import steps as engine
from isotrace.annotation.annotate import Annotation, AnnotationConfig
from isotrace.annotation.scores.token_scores import Pairs
from isotrace.datasets.annotated import Data, prepare
from isotrace.datasets.concept_table import ConceptTable
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.domains.domain import Concept, Labels, Reading
from isotrace.domains.molecule.domain import MOLECULE
from isotrace.subjects.subject import Batch, Subject

TABLES = ("features", "associations", "examples", "sequences", "concepts", "coverage", "rejects")
FULL = AnnotationConfig(n_permutations=99, n_bootstrap=40, untrained_tokens=2_000, stability_sequences=20)
QUICK = replace(FULL, sources=("dictionary", "token_identity"), n_permutations=59, spellings=0, effects=False)


def random_table(seed: int, n_concepts: int = 6, n_sequences: int = 9) -> ConceptTable:
    """Overlapping instances of 1 to 4 tokens; the last concept has none; sequences of 1 to 12 tokens."""
    rng = np.random.default_rng(seed)
    lengths, labels = rng.integers(1, 13, n_sequences), []
    for length in lengths:
        instances = [
            (int(rng.integers(n_concepts - 1)), tuple(rng.choice(length, rng.integers(1, min(length, 4) + 1), False)))
            for _ in range(rng.integers(0, 9))
        ]
        labels.append(Labels(tuple(instances), np.full(n_concepts, np.nan)))
    concepts = [Concept(f"c{i}", "random", "token") for i in range(n_concepts)]
    return ConceptTable.of(concepts, lengths.tolist(), labels)


def random_activations(seed: int, n_tokens: int, n_features: int = 7) -> np.ndarray:
    """float32; feature 0 never fires, feature 1 fires everywhere, the rest in half of the places."""
    rng = np.random.default_rng((seed, 1))
    dense = rng.random((n_tokens, n_features)) * (rng.random((n_tokens, n_features)) < 0.5)
    dense[:, 0], dense[:, 1] = 0, 1 + rng.random(n_tokens)
    return dense.astype(np.float32)


def every_pair(dense: np.ndarray, n_concepts: int, threshold: float) -> Pairs:
    concept, feature = (part.ravel() for part in np.indices((n_concepts, dense.shape[1])))
    return Pairs(feature, concept, np.zeros(len(feature), dtype=int), np.full(len(feature), threshold, np.float32))


def instances_of(table: ConceptTable, concept: int) -> list[set[int]]:
    numbers = range(table.concept_ptr[concept], table.concept_ptr[concept + 1])
    return [set(table.tokens[table.instance_ptr[i] : table.instance_ptr[i + 1]].tolist()) for i in numbers]


@dataclass(frozen=True)
class Letters:
    """The molecule domain with a few concepts of its own: carbon, oxygen, nitrogen (one instance per token), CO (per
    pair), empty, everywhere, special; classes and values of the whole text. Every text is a group of its own."""

    only: str | None = None
    name: str = "molecule"
    element: str = "atom"

    def __getattr__(self, name: str) -> Any:
        return getattr(MOLECULE, name)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        token = ("carbon", "oxygen", "nitrogen", "CO", "empty", "everywhere", "special")
        whole = {"has N": "class", "always": "class", "n O": "value", "constant": "value", "unknown": "value"}
        found = [Concept(name, "letter", "token") for name in token]
        found += [Concept(name, "whole", kind) for name, kind in whole.items()]
        return tuple(c for c in found if self.only is None or (c.kind == "token") == (self.only == "token"))

    def label(self, reading: Reading) -> Labels:
        texts = [unit.text for unit in reading.units]
        at = {name: [i for i, text in enumerate(texts) if text == letter]
              for name, letter in (("carbon", "C"), ("oxygen", "O"), ("nitrogen", "N"))}  # fmt: skip
        parts = {name: [(i,) for i in places] for name, places in at.items()}
        parts["CO"] = [(i, i + 1) for i in at["carbon"] if texts[i + 1] == "O"]
        parts["everywhere"] = [tuple(range(len(texts)))]
        parts["special"] = [(i,) for i, unit in enumerate(reading.units) if unit.kind == "special"]
        numbers = {"has N": float("N" in reading.text), "always": 1.0, "n O": float(reading.text.count("O"))}
        numbers["constant"] = 7.0
        names = [concept.name for concept in self.concepts]
        instances = [(i, tokens) for i, name in enumerate(names) for tokens in parts.get(name, [])]
        return Labels(tuple(instances), np.asarray([numbers.get(name, np.nan) for name in names]))

    def groups(self, texts: Sequence[str]) -> list[str]:
        return list(texts)


def chains(n: int, seed: int = 0) -> list[str]:
    """Distinct chains of 4 to 14 atoms; about half hold nitrogen."""
    rng, found = np.random.default_rng(seed), {}
    while len(found) < n:
        letters = "CCCO" if rng.random() < 0.5 else "CCCON"
        found["".join(rng.choice(list(letters), rng.integers(4, 15)))] = None
    return list(found)


def rows_of(texts: Sequence[str]) -> pl.DataFrame:
    """As `read_inputs` gives them."""
    names = [f"m{i}" for i in range(len(texts))]
    columns = {"index": range(len(texts)), "name": names, "sequence": texts}
    return pl.DataFrame(columns, schema={"index": pl.Int64, "name": pl.String, "sequence": pl.String})


def planted_dictionary(subject: Subject, letter: str = "O", n_features: int = 10) -> Dictionary:
    """Reads the residual stream under layers 0 and 1. Feature 3 of layer 0 is positive on tokens `letter` and on no
    other of chains: an affine function through their embeddings, 16 numbers that tell 5 tokens apart."""
    torch.manual_seed(0)
    dictionary = tiny.random_dictionary(
        subject, "sae", n_features=n_features, k=n_features, layers=(0, 1), activation="topk",
        hookpoint_in="layers.{}.resid_pre", hookpoint_out="layers.{}.resid_pre",
    )  # fmt: skip
    batch = subject.tokenize(["CON"])
    embedding = subject.model.get_input_embeddings()(batch.ids[0])
    is_letter = torch.tensor([token == letter for token in subject.tokens(batch.ids[0])])
    with_one = torch.cat([embedding, torch.ones(len(embedding), 1)], dim=1)
    solution = torch.linalg.pinv(with_one) @ (2.0 * is_letter - 1.0)
    dictionary.b_dec[0].data.zero_()
    dictionary.W_enc[0].data[:, 3] = solution[:-1]
    dictionary.b_enc[0].data[3] = solution[-1]
    return dictionary


def shuffled_labels(data: Data, seed: int) -> Data:
    """All labels of tokens permuted over the whole data set, special tokens apart, numbers among sequences."""
    rng, table = np.random.default_rng(seed), data.table
    place = np.arange(table.n_tokens)
    ordinary = np.flatnonzero(~data.special)
    place[ordinary] = rng.permutation(ordinary)
    tokens = []
    for concept in range(len(table.token_concepts)):
        bounds = table.instance_ptr[table.concept_ptr[[concept, concept + 1]]]
        tokens.append(np.unique(place[table.tokens[bounds[0] : bounds[1]]]))
    sizes = [len(part) for part in tokens]
    ptr = np.concatenate([[0], np.cumsum(sizes)])
    flat = np.concatenate(tokens).astype(np.int32)
    numbers = table.numbers[rng.permutation(table.n_sequences)]
    shuffled = replace(table, concept_ptr=ptr, instance_ptr=np.arange(len(flat) + 1), tokens=flat, numbers=numbers)
    return replace(data, table=shuffled)


def csc(dense: np.ndarray) -> sparse.csc_matrix:
    return sparse.csc_matrix(dense)


def make_world(subject: Subject) -> tuple[Subject, Dictionary, Data]:
    """Subject, dictionary with a planted feature, data."""
    return subject, planted_dictionary(subject), prepare(subject, Letters(), rows_of(chains(120)), [], seed=0)


def assert_same(found: Annotation, expected: Annotation) -> None:
    for name in TABLES:
        assert_frame_equal(getattr(found, name), getattr(expected, name), check_exact=True)
    without = [{k: v for k, v in one.summary.items() if k != "seconds"} for one in (found, expected)]
    assert without[0] == without[1]


class StoppedError(Exception):
    """Raised in place of a kill."""


def stop_after(steps: int):
    """A progress that ends the run before step number `steps` of all."""
    left = steps

    def progress(items, text):
        nonlocal left
        for item in items:
            if not left:
                raise StoppedError(text)
            left -= 1
            yield item

    return progress


def codes_of(subject: Subject, dictionary: Dictionary, batch: Batch, layer: int) -> np.ndarray:
    """`[tokens, features]` of one sequence, from the whole model's own forward pass."""
    states = []
    module, _ = subject.hookpoint(f"layers.{layer}.resid_pre")
    handle = module.register_forward_pre_hook(lambda m, args: states.append(args[0]))
    subject.model(input_ids=batch.ids)
    handle.remove()
    found = dictionary.encode(dictionary.config.layers.index(layer), states[0][0])
    dense = torch.zeros(len(states[0][0]), dictionary.config.n_features)
    return dense.scatter_(1, found.indices, found.values).clamp(min=0).numpy()


def watch(monkeypatch) -> list[str]:
    """A list that gets "site" for every site examined and the name of every file of arrays written."""
    done: list[str] = []
    examine, save = engine.examine, np.savez
    monkeypatch.setattr(engine, "examine", lambda *args, **given: (done.append("site"), examine(*args, **given))[1])
    monkeypatch.setattr(
        np, "savez", lambda file, **arrays: (done.append(Path(file.name).name[10:-4]), save(file, **arrays))[1]
    )
    return done
