"""A protein subject in which one neuron of layer 1 makes the residues of a set likelier, and what stands around it.

    A         neuron n_A of layer 1 rises with the share of D, E, N and Q (a head of layer 0 averages them) and writes
              A, which the head of the language model reads as their logit
    B         as much for K, R, H and M
    decoy     rises with A as n_A does, and a little with other residues; nobody reads what it writes
    dormant   rises with A as well; what it writes is read by a neuron of layer 2 that writes A, but that one stands
              above its threshold only where W is in the sequence, and no sequence has a W

A neuron for every other residue does as much for that one alone, so that other directions, random ones and those of
shuffled labels, find something to move. The property is the share of A's residues, and by design it goes with length.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isotrace.steering.contrast import Contrast
from isotrace.studies.worlds.planted_weights import LENGTH, Node, Weights
from isotrace.subjects.subject import Subject

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
A, B, GATE = "DENQ", "KRHM", "W"
BESIDE = {"decoy": "ST", "dormant": "VI"}
"""Residues that these neurons rise with too."""
SMALL = 0.3
"""What decoy and dormant write where n_A writes LENGTH."""
NEVER = -20.0
"""Logit of what stands in no sequence."""
LEAST, MOST = 10, 20
"""Residues of a sequence."""
GROUP = 8


@dataclass(frozen=True, eq=False)
class World:
    """`neurons`: A, B, decoy and dormant → (layer, neuron). `written`: what each writes, unit `[d_model]`."""

    subject: Subject
    neurons: dict[str, Node]
    written: dict[str, Tensor]

    @property
    def layer(self) -> int:
        """Of all four."""
        return self.neurons["A"][0]


def planted_world(folder: Path) -> World:
    """Saved in `folder` as a checkpoint of transformers, and loaded like any other."""
    others = [t for t in RESIDUES if t not in A + B + GATE]
    seen = {"A": A, "B": B} | BESIDE | {f"only {t}": t for t in others}
    names = [*(f"token {t}" for t in RESIDUES), *(f"answer {t}" for t in others), *(f"seen {name}" for name in seen)]
    w = Weights([*names, "gate", "A", "B", "decoy", "dormant"], RESIDUES)
    # the usual length where half of the residues are of the set, or one of twenty is a W
    averages = [(f"token {t}", f"seen {name}", 2.0) for name, residues in seen.items() for t in residues]
    w.head(0, [], [*averages, (f"token {GATE}", "gate", 20.0)])
    neurons = {name: w.neuron(1, {f"seen {name}": 10.0}, 0.0, name) for name in ("A", "B")}
    for name in BESIDE:
        neurons[name] = w.neuron(1, {"seen A": 9.0, f"seen {name}": 3.0}, 0.0, name, SMALL)
    for t in others:
        w.neuron(1, {f"seen only {t}": 10.0}, 0.0, f"answer {t}", LENGTH / 3)
    w.neuron(2, {"dormant": 30 / SMALL, "gate": 60 / LENGTH}, -70.0, "A")
    head, vocabulary = w.model.lm_head, w.tokenizer.get_vocab()
    for word, index in vocabulary.items():
        head.bias.data[index] = 0.0 if word in RESIDUES and word != GATE else NEVER
        if f"answer {word}" in names:
            head.decoder.weight.data[index] *= 3
        for name, residues, gain in (("A", A, 0.6), ("B", B, 0.45)):
            if word in residues:
                head.decoder.weight.data[index] = gain * w[name]
    return World(w.load(folder), neurons, {name: w[name] for name in neurons})


def share(text: str) -> float:
    """The property: of A among the residues."""
    return sum(text.count(residue) for residue in A) / len(text)


def sequences(n: int, seed: int) -> list[str]:
    """n chains of LEAST to MOST residues. The longer, the more of A; those of B go with neither; no W."""
    rng, others = np.random.default_rng((seed, 21)), [t for t in RESIDUES if t not in A + B + GATE]
    found = []
    for _ in range(n):
        length = int(rng.integers(LEAST, MOST + 1))
        long = (length - LEAST) / (MOST - LEAST)
        n_a = rng.binomial(length, 0.1 + 0.2 * long + 0.3 * rng.random())
        n_b = min(rng.binomial(length, 0.4 * rng.random()), length - n_a)
        chain = [*rng.choice([*A], n_a), *rng.choice([*B], n_b), *rng.choice(others, length - n_a - n_b)]
        found.append("".join(rng.permutation(chain)))
    return found


def contrast_of(subject: Subject, texts: list[str], labels: list | None = None, **given) -> Contrast:
    """Of the property, or of `labels`; groups of eight."""
    labels = [share(text) for text in texts] if labels is None else labels
    groups = [f"g{i // GROUP}" for i in range(len(texts))]
    return Contrast.of(subject, texts, labels, groups=groups, **given)


@torch.no_grad()
def logits_of(world: World, texts: list[str], residues: str) -> np.ndarray:
    """float64 `[n]`: mean logit of `residues` over all tokens of each sequence."""
    ids = [world.subject.token_id(t) for t in residues]
    found = []
    for text in texts:
        logits = world.subject.run(world.subject.tokenize([text])).logits
        assert logits is not None  # it has a head
        found.append(float(logits[0, 1:-1][:, ids].mean()))
    return np.asarray(found)
