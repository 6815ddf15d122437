"""What the studies of effects are made on: molecules of the scaffold test parts, framed for a target."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np

from isotrace.attribution.graph import AttributionGraph, Frame, build_graph, frame
from isotrace.attribution.trace import TraceConfig
from isotrace.base.errors import InputError
from isotrace.base.files import write_whole
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.interventions.components import Values, mean_values
from isotrace.interventions.hookpoints import Neurons
from isotrace.studies.study import Setting, bundled_table
from isotrace.subjects.subject import Subject
from isotrace.subjects.targets import Target, parse_target

SUBJECT, DICTIONARY = "bundled:molm", "bundled:molm-clt"
TABLES = {"mask": "bbb", "probe:bbb": "bbb", "probe:esol": "esol", "probe:logd": "lipophilicity"}
"""Target → the table its molecules come from; `mask` hides the token of one atom, drawn at random."""
TOKENS = 12, 60
BACKGROUND = 64
"""Molecules over which neurons have their means."""


@dataclass(frozen=True)
class Case:
    smiles: str
    target: Target
    frame: Frame
    graph: AttributionGraph


def drawn(subject: Subject, kind: str, n: int, seed: int) -> list[tuple[str, str]]:
    """(SMILES, target) of `n` molecules of the scaffold test part, of 12 to 60 tokens."""
    table = bundled_table(TABLES[kind])
    texts = table.filter(table["split_scaffold"] == "test")["smiles"].to_list()
    rng, found = np.random.default_rng(seed), []
    for place in rng.permutation(len(texts)).tolist():
        try:
            tokens = subject.tokens(subject.tokenize([texts[place]]).ids[0])
        except InputError:
            continue
        if not TOKENS[0] <= len(tokens) <= TOKENS[1]:
            continue
        atoms = [p for p, token in enumerate(tokens) if token.strip("[]")[:1].isalpha()]
        found.append((texts[place], f"mask:{rng.choice(atoms)}" if kind == "mask" else kind))
        if len(found) == n:
            break
    return found


def case_of(subject: Subject, dictionary: Dictionary, smiles: str, asked: str) -> Case:
    batch = subject.tokenize([smiles])
    target = parse_target(asked, subject, batch)
    framed = frame(subject, dictionary, target.prepare(subject, batch), target)
    return Case(smiles, target, framed, build_graph(framed, max_features=TraceConfig().max_features))


def neuron_means(subject: Subject) -> Values:
    """Over molecules of a training part, `[neurons, 1]` per layer."""
    table = bundled_table("bbb")
    texts = table.filter(table["split_scaffold"] == "train")["smiles"][:BACKGROUND]
    return mean_values(subject, Neurons(), [subject.tokenize([text]) for text in texts])


def kept(setting: Setting, kind: str, text: str, make: Callable[[], Any]) -> Any:
    """What `make` gives of the input `text`, kept as JSON until the study is done."""
    file = setting.work / f"{kind.replace(':', '-')}-{crc32(text.encode())}.json"
    if not file.is_file():
        write_whole(file, json.dumps(make()).encode())
    return json.loads(file.read_text())


def each(
    subject: Subject, dictionary: Dictionary, n: int, setting: Setting, measure: Callable[[str, Case], Any]
) -> list[Any]:
    """What `measure` gives of every kind of target and each of `n` molecules, see `kept`."""
    return [
        kept(setting, kind, smiles, lambda: measure(kind, case_of(subject, dictionary, smiles, asked)))  # noqa: B023
        for kind in TABLES
        for smiles, asked in setting.progress(drawn(subject, kind, n, setting.seed), kind)
    ]
