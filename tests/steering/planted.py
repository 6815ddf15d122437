"""A subject in which one neuron of layer 0 writes `a` for every N, and what else stands in the way.

N → a            neuron 0 of layer 0, the planted direction; neuron 1 of layer 1 turns a into the logit of F
O → other        neuron 1: does as much for O
S → junk         neurons 2 and 3: fire for S, which both sides have alike, and write to directions nobody reads
"""

import numpy as np

from isotrace.steering.contrast import Contrast
from isotrace.studies.worlds.planted_weights import Weights

TOKENS = "CNOSF"


def subject_of(folder):
    w = Weights([*(f"token {t}" for t in TOKENS), "a", "other", "junk", "junk 2", "answer F", "answer O"])
    neuron = w.detectors(0, [("token N", "a"), ("token O", "other"), ("token S", "junk"), ("token S", "junk 2")])[0]
    for read, answer in (("a", "answer F"), ("other", "answer O")):  # in proportion, from nothing on
        w.neuron(1, {read: 10.0}, 0.0, answer)
    subject = w.load(folder)
    return subject, w, neuron


def sequences(n, seed):
    """n of either side: 4 to 9 atoms in a chain, N (positive) or O (negative) among them, and often S."""
    rng, texts, labels = np.random.default_rng(seed), [], []
    for i in range(2 * n):
        chain = rng.choice([*"CCCS"], 4 + i // 2 % 6)
        chain[rng.choice(len(chain), 2, replace=False)] = "NO"[i % 2]
        texts.append("".join(chain))
        labels.append("wanted" if i % 2 == 0 else "not")
    return texts, labels


def contrast_of(subject, n=12, seed=0, **given):
    texts, labels = sequences(n, seed)
    return Contrast.of(subject, texts, labels, positive="wanted", groups=[f"g{i // 8}" for i in range(2 * n)], **given)


def counted(subject):
    """Sequences of 0 to 6 N, and O for the rest, two of each; the number is the label."""
    texts = ["N" * (i // 2) + "O" * (6 - i // 2) + "CS"[i % 2] for i in range(14)]
    return Contrast.of(subject, texts, [i // 2 for i in range(14)], kind="regression")
