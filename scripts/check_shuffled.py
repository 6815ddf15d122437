"""How often does annotation find something where there is nothing? Labels are shuffled over all tokens, 100 times.

    python scripts/check_shuffled.py [DATA.csv] --sequences 300 --layers 0,3 --repetitions 100

Concepts keep their numbers of tokens and come together on a token as before; which token has which is random. Prints,
as JSON, in how many repetitions some feature of the bundled dictionary has q < 0.05, by the p that annotation uses and
by each of the two it is the larger of, and the share of concepts whose best pair has p ≤ 0.05 (5 % if exact).
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from isotrace.annotation.combine import combine
from isotrace.annotation.nulls import sources
from isotrace.annotation.site import Sides, examine
from isotrace.datasets.annotated import prepare, untestable
from isotrace.datasets.concept_table import ConceptTable
from isotrace.datasets.inputs import read_inputs
from isotrace.dictionaries.saving import load_dictionary
from isotrace.domains.domain import domain_of
from isotrace.stats.bootstrap import bootstrap_weights
from isotrace.stats.permutation import q_values
from isotrace.subjects.subject import load_subject

ROOT = Path(__file__).parents[1]


def shuffled(table: ConceptTable, special: np.ndarray, seed: int) -> ConceptTable:
    """Every token that is not special gets the labels of another; an instance is then a single token."""
    rng = np.random.default_rng(seed)
    free = np.flatnonzero(~special)
    place = np.arange(table.n_tokens)
    place[free] = rng.permutation(free)
    pairs = np.unique(np.stack([np.repeat(table.concept_of, np.diff(table.instance_ptr)), place[table.tokens]]), axis=1)
    counts = np.bincount(pairs[0], minlength=len(table.token_concepts))
    return replace(
        table,
        concept_ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        instance_ptr=np.arange(pairs.shape[1] + 1, dtype=np.int64),
        tokens=pairs[1].astype(np.int32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=ROOT / "tests/data/heldout.smi")
    parser.add_argument("--sequences", type=int, default=300)
    parser.add_argument("--layers", default="0,3")
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--permutations", type=int, default=499)
    args = parser.parse_args()
    subject = load_subject("bundled:molm")
    dictionary = load_dictionary("bundled:molm-clt", subject)
    rows, _ = read_inputs(str(args.data))
    data = prepare(subject, domain_of("molecule"), rows.head(args.sequences), [], seed=0)
    layers = [int(layer) for layer in args.layers.split(",")]
    sites = [s for s in sources.dictionary_sites("dictionary", dictionary) if s.layer in layers]
    with tempfile.TemporaryDirectory() as folder:
        sources.harvest(subject, sites, data, Path(folder), "trained")
        found = {s.layer: sources.load(Path(folder), "trained", s.key, s.n_features) for s in sites}
    names = ("p", "p_selection", "p_heldout")
    significant, low, n_tests = dict.fromkeys(names, 0), dict.fromkeys(names, 0), 0
    for repetition in range(args.repetitions):
        table = shuffled(data.table, data.special, repetition)
        reasons = untestable(table, data.held, data.special, 20)[: len(table.token_concepts)]
        table = table.pick(np.flatnonzero([reason is None for reason in reasons]))
        sides = Sides.of(table, data.held, data.special, 1.0, repetition)
        weights = bootstrap_weights(sides.held.table.n_sequences, 20, (repetition, 2))
        settings = {"quantiles": (0.0, 0.5, 0.75, 0.9), "per_feature": 0, "per_concept": 1, "seed": repetition}
        results = {
            layer: examine(x, sides, weights, n_permutations=args.permutations, **settings)
            for layer, x in found.items()
        }
        frame = combine("dictionary", results, table.token_concepts).frame
        best = frame["concept_rank"].to_numpy() == 1
        for name in names:
            p = frame[name].to_numpy()
            significant[name] += bool((q_values(p, best, len(table.token_concepts))[best] < 0.05).any())
            low[name] += int((p[best] <= 0.05).sum())
        n_tests += int(best.sum())
        print(f"{repetition + 1}: {significant}", file=sys.stderr)
    print(
        json.dumps(
            {
                "repetitions": args.repetitions,
                "sequences": len(data.ids),
                "tokens": data.table.n_tokens,
                "concepts_per_repetition": n_tests / args.repetitions,
                "repetitions_with_q_below_0.05": significant,
                "share_of_concepts_with_p_at_most_0.05": {name: round(low[name] / n_tests, 4) for name in names},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
