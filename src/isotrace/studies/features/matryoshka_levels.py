"""Matryoshka levels: do the first features of a nested dictionary know more, do later ones stand below or absorb them?

An SAE with prefixes is trained on molm's middle layer, and beside it one of the same size and sparsity without, cut at
the same places. Labels are those of `isotrace annotate`, made on two thirds of the scaffolds and graded on the rest;
see `isotrace.annotation.levels`.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse

from isotrace.activations.harvest import Corpus
from isotrace.annotation.benchmark.labelers import Builtin, Shown
from isotrace.annotation.levels import Layered, absorption, concepts_of, hierarchy, levels
from isotrace.annotation.nulls.sources import dictionary_sites, encoded
from isotrace.dictionaries.build import configure
from isotrace.stats.splits import deal
from isotrace.studies.features.graded_labelers import molecules
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.subject import load_subject
from isotrace.training.config import TrainingConfig
from isotrace.training.loop import train_dictionary

SUBJECT, LAYER, K = "bundled:molm", 3, 24
PREFIXES = 64, 256, 1_024


@study("matryoshka_levels", "molm: labels, hierarchy and absorption by level of a nested dictionary, beside a flat one")
def matryoshka_levels(setting: Setting) -> Outcome:
    n_molecules, tokens, n_permutations = (600, 600_000, 200) if setting.quick else (3_000, 8_000_000, 1_000)
    subject = load_subject(SUBJECT)
    ground = molecules(subject, n_molecules, setting.seed, setting.progress)
    texts = [reading.text for reading in ground.readings]
    part = deal(ground.domain.groups(texts), (1 / 3, 1 / 3, 1 / 3), setting.seed)
    corpus = Corpus.of(subject, [text for text in bundled_table("bbb")["smiles"] if text not in {*texts}])
    nested = configure(subject, "sae", n_features=PREFIXES[-1], k=K, layers=(LAYER,), prefixes=PREFIXES)
    tables: dict[str, list[dict[str, Any]]] = {"levels": [], "relations": []}
    for name, config in setting.progress([("nested", nested), ("flat", replace(nested, prefixes=()))], "training"):
        training = TrainingConfig(tokens=tokens, dead_after=min(200_000, tokens // 4), seed=setting.seed)
        made = train_dictionary(subject, corpus, config, training, setting.work / f"{name}.pt", measure=False)
        activations = sparse.csr_matrix(sparse.vstack(encoded(subject, dictionary_sites("dictionary", made), texts)))
        rows = np.flatnonzero(part < 2)
        shown = ground.take(rows)
        seen = sparse.csr_matrix(activations[ground.table.token_rows(rows)])
        labels = Builtin(n_permutations)(Shown(shown, seen, part[rows] == 1, setting.seed))
        names = [concept.name for concept in ground.table.token_concepts]
        decoders = made.decoder(0, 0).detach().cpu().numpy()
        layer = Layered(ground, activations, decoders, PREFIXES, concepts_of(labels, names), part == 2)
        tables["levels"] += [{"dictionary": name, **row} for row in levels(layer, setting.seed)]
        relations = hierarchy(layer, setting.seed) | absorption(layer, setting.seed)
        tables["relations"].append({"dictionary": name, **relations})
    return Outcome(tables, (verdict(tables), NOTE))


NOTE = (
    "labelled: share of the features that fire; auroc: of what labels predict on molecules they were not made from. "
    "implied: of child–parent pairs whose concepts stand in that order, null: with parents of the same level that fire "
    "as often. absorbed: silent where its concept holds and a child fires; silent: where none fires; more: the "
    "difference. The flat dictionary is cut at the same places, its order means nothing."
)


def verdict(tables: dict[str, list[dict[str, Any]]]) -> str:
    said = []
    for name in ("nested", "flat"):
        rows = [row for row in tables["levels"] if row["dictionary"] == name]
        shares = ", ".join("–" if row["labelled"] is None else f"{row['labelled']:.2f}" for row in rows)
        own = next(row for row in tables["relations"] if row["dictionary"] == name)
        tested = own["implied"] is not None
        pairs = f"{own['implied']:.2f} (null {own['null']:.2f}, p {own['p']:.3f})" if tested else "–"
        lost = f"absorbed {own['more']:+.2f}" if own["parents"] else "no parent that could be absorbed"
        said.append(f"{name}: labelled by level {shares}; implied of {own['pairs']} pairs {pairs}; {lost}")
    return ". ".join(said) + "."
