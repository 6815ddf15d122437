"""What the studies of effects are made on: molecules of the scaffold test parts, framed for a target."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from isotrace.attribution.graph import AttributionGraph, Frame, build_graph, frame
from isotrace.attribution.trace import TraceConfig
from isotrace.base.errors import InputError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.studies.study import bundled_table
from isotrace.subjects.subject import Subject
from isotrace.subjects.targets import Target, parse_target

SUBJECT, DICTIONARY = "bundled:molm", "bundled:molm-clt"
TABLES = {"mask": "bbb", "probe:bbb": "bbb", "probe:esol": "esol"}
"""Target → the table its molecules come from; `mask` hides the token of one atom, drawn at random."""
TOKENS = 12, 60


@dataclass(frozen=True)
class Case:
    smiles: str
    target: Target
    frame: Frame
    graph: AttributionGraph


def cases(subject: Subject, dictionary: Dictionary, kind: str, n: int, seed: int) -> Iterator[Case]:
    """`n` molecules of the scaffold test part, of 12 to 60 tokens."""
    table = bundled_table(TABLES[kind])
    texts = table.filter(table["split_scaffold"] == "test")["smiles"].to_list()
    rng, found = np.random.default_rng(seed), 0
    for place in rng.permutation(len(texts)).tolist():
        try:
            batch = subject.tokenize([texts[place]])
        except InputError:
            continue
        tokens = subject.tokens(batch.ids[0])
        if not TOKENS[0] <= len(tokens) <= TOKENS[1]:
            continue
        atoms = [p for p, token in enumerate(tokens) if token.strip("[]")[:1].isalpha()]
        target = parse_target(f"mask:{rng.choice(atoms)}" if kind == "mask" else kind, subject, batch)
        framed = frame(subject, dictionary, target.prepare(subject, batch), target)
        yield Case(texts[place], target, framed, build_graph(framed, max_features=TraceConfig().max_features))
        found += 1
        if found == n:
            return
