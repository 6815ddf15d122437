"""Naming the features of a dictionary on a set of sequences, and collecting examples of each.

Writes two tables beside the dictionary: `features.parquet` (one row per feature: label and statistics) and
`examples.parquet` (top, middle and weakly activating sequences of each feature, with per-token activations).
"""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import torch
from scipy import sparse

from isotrace.annotation.associations import associate
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.domains.molecule import parse, token_map
from isotrace.domains.molecule.concepts import CONCEPTS, concept_matrix
from isotrace.errors import InputError
from isotrace.subjects.subject import Subject

GROUPS = {"top": 4, "middle": 2, "weak": 2}


def annotate(
    subject: Subject,
    dictionary: Dictionary,
    sequences: Sequence[str],
    groups: Sequence[str],
    *,
    seed: int,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """(features, examples, rejects). `groups` (a scaffold per sequence) keeps relatives on one side of the split:
    concept and threshold are chosen on half of the groups and scored on the other half."""
    kept, rejects, blocks, concepts = [], [], [], []
    acts: list[list[sparse.csr_matrix]] = [[] for _ in range(dictionary.config.n_layers)]
    for number, smiles in enumerate(sequences):
        try:
            mol = parse(smiles)
            batch = subject.tokenize([smiles.strip()])
            units = token_map(smiles.strip(), subject.tokens(batch.ids[0]), batch.offsets[0])
        except InputError as error:
            rejects.append({"index": number, "input": smiles, "reason": str(error)})
            continue
        names = [f"layers.{i}.mlp_in" for i in range(subject.n_layers)]
        captured = subject.run(batch, capture=names, logits=False).captured
        for layer, name in enumerate(names):
            acts[layer].append(_csr(dictionary, layer, captured[name][0]))
        concepts.append(concept_matrix(smiles.strip(), units, mol))
        blocks.append(len(units))
        kept.append(number)
        if number % 500 == 499:
            progress(f"{number + 1} of {len(sequences)} sequences encoded")
    molecule = np.repeat(np.arange(len(kept)), blocks)
    unique = {g: i for i, g in enumerate(dict.fromkeys(groups[n] for n in kept))}
    side = np.random.default_rng(seed).random(len(unique)) < 0.5
    selection = np.asarray([side[unique[groups[n]]] for n in kept])
    labelled = sparse.csr_matrix(sparse.vstack(concepts))
    concept_names = [c.name for c in CONCEPTS]
    features, examples = [], []
    texts: list[str] = [str(sequences[n]).strip() for n in kept]
    starts = np.concatenate([[0], np.cumsum(blocks)])
    for layer in range(dictionary.config.n_layers):
        matrix = sparse.csr_matrix(sparse.vstack(acts[layer]))
        frame = associate(matrix, labelled, molecule, selection, names=concept_names, seed=seed + layer)
        density = np.bincount(matrix.indices, minlength=dictionary.config.n_features) / len(molecule)
        features.append(frame.with_columns(pl.lit(layer).alias("layer"), pl.Series("density", density)))
        found = _examples(sparse.csc_matrix(matrix), molecule, starts, texts, seed)
        examples.append(found.with_columns(pl.lit(layer).alias("layer")))
        progress(f"layer {layer} of {dictionary.config.n_layers} annotated")
    schema = {"index": pl.Int64, "input": pl.String, "reason": pl.String}
    return pl.concat(features), pl.concat(examples), pl.DataFrame(rejects, schema=schema)


def _csr(dictionary: Dictionary, layer: int, x: torch.Tensor) -> sparse.csr_matrix:
    """Activations `[tokens, F]` of one sequence."""
    found = dictionary.encode(layer, x)
    rows = torch.arange(len(x))[:, None].expand_as(found.indices)
    on = found.values > 0
    shape = (len(x), dictionary.config.n_features)
    return sparse.csr_matrix((found.values[on].numpy(), (rows[on].numpy(), found.indices[on].numpy())), shape=shape)


def _examples(
    matrix: sparse.csc_matrix, molecule: np.ndarray, starts: np.ndarray, texts: list[str], seed: int
) -> pl.DataFrame:
    """Sequences by their maximal activation: the highest, around the median, and the lowest positive ones."""
    rng = np.random.default_rng(seed)
    records = []
    for feature in range(len(matrix.indptr) - 1):
        part = slice(matrix.indptr[feature], matrix.indptr[feature + 1])
        rows, values = matrix.indices[part], matrix.data[part]
        if not len(rows):
            continue
        owner = molecule[rows]
        peak = np.zeros(len(texts), dtype=np.float32)
        np.maximum.at(peak, owner, values)
        active = np.flatnonzero(peak)
        ranked = active[np.argsort(-peak[active], kind="stable")]
        third = max(1, len(ranked) // 3)
        pools = {"top": ranked[: GROUPS["top"]], "middle": ranked[third : 2 * third], "weak": ranked[2 * third :]}
        seen: set[int] = set()
        for group, pool in pools.items():
            pool = np.asarray([i for i in pool if i not in seen], dtype=int)
            size = min(GROUPS[group], len(pool))
            chosen = pool if group == "top" else rng.choice(pool, size, replace=False)
            for index in chosen.tolist():
                seen.add(index)
                at = owner == index
                records.append(
                    {
                        "feature": feature,
                        "group": group,
                        "smiles": texts[index],
                        "activation": float(peak[index]),
                        "positions": (rows[at] - starts[index]).tolist(),
                        "values": values[at].tolist(),
                    }
                )
    schema = {"feature": pl.Int64, "group": pl.String, "smiles": pl.String, "activation": pl.Float32}
    return pl.DataFrame(records, schema=schema | {"positions": pl.List(pl.Int16), "values": pl.List(pl.Float32)})
