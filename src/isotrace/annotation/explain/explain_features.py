"""Which features of an annotated dictionary are put to a language model, and with what; `explain` does the asking."""

import numpy as np
import polars as pl
from scipy import sparse
from torch import Tensor

from isotrace.activations.harvest import record
from isotrace.annotation.explain.chat import Chat
from isotrace.annotation.explain.labels import explain, make_task
from isotrace.annotation.nulls.sources import BATCH_TOKENS, dictionary_sites
from isotrace.base.errors import InputError
from isotrace.base.progress import Progress
from isotrace.datasets.annotated import Data
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.subjects.subject import Subject

THINGS = {
    "molecule": "molecules, written as SMILES",
    "reaction": "chemical reactions, written as SMILES",
    "protein": "protein sequences",
    "antibody": "antibody sequences",
}
SCHEMA = {
    "layer": pl.Int32, "feature": pl.Int64, "explanation": pl.String, "text": pl.String,
    "balanced_accuracy": pl.Float64, "ci_low": pl.Float64, "ci_high": pl.Float64, "p": pl.Float64, "q": pl.Float64,
    "n_items": pl.Int64, "reason": pl.String,
}  # fmt: skip


def explain_features(
    features: pl.DataFrame,
    associations: pl.DataFrame,
    data: Data,
    subject: Subject,
    dictionary: Dictionary,
    chat: Chat,
    *,
    n_features: int,
    seed: int,
    progress: Progress = lambda items, _: items,
) -> pl.DataFrame:
    """One row per feature asked about: `layer`, `feature`; `explanation`, the sentence if it passed detection, else
    null; `text`, the sentence whether or not; `balanced_accuracy`, `ci_low`, `ci_high`, `p`, `q`, `n_items` of
    detection; `reason`, why there is no explanation.

    features, associations: as in docs/annotate.md. Asked are `n_features` of those that ever fire, unexplained ones
    first, then by density. Raises as `Chat.ask`.
    """
    chosen = (
        features.filter(pl.col("density") > 0)
        .sort(pl.col("label") != "unexplained", -pl.col("density"), maintain_order=True)
        .head(n_features)
    )
    wanted = {
        int(layer): np.sort(part["feature"].to_numpy())
        for (layer,), part in chosen.group_by("layer", maintain_order=True)
    }
    known = _concepts(associations)
    tasks, rows = [], []
    for layer, matrix in _activations(data, subject, dictionary, wanted, progress).items():
        for column, feature in enumerate(wanted[layer].tolist()):
            key = layer, feature
            try:
                one = sparse.csc_matrix(matrix[:, [column]])
                concepts = known.get(key, [])
                task = make_task(
                    key, one, data.readings, data.table.sequence_ptr, data.held, concepts=concepts, seed=seed
                )
                tasks.append(task)
            except InputError as error:
                rows.append((*key, None, None, None, None, None, None, None, 0, str(error)))
    things = THINGS.get(data.domain.name, f"{data.domain.name} sequences")
    found = explain(tasks, chat, things=things, progress=lambda items: progress(items, "explanations"))
    for one in found:
        shown = one.text if one.reason is None else None
        numbers = one.balanced_accuracy, one.low, one.high, one.p, one.q
        rows.append((*one.key, shown, one.text, *numbers, one.n_items, one.reason))
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    return frame.with_columns(pl.col(pl.Float64).fill_nan(None)).sort("layer", "feature")


def _concepts(associations: pl.DataFrame) -> dict[tuple[int, int], list[str]]:
    """Up to three lines per feature of the dictionary, best first."""
    found: dict[tuple[int, int], list[str]] = {}
    own = associations.filter(pl.col("source") == "dictionary", pl.col("feature_rank") <= 3, pl.col("q") < 0.05)
    scores = [name for name in ("f1", "auroc", "spearman") if name in own.columns]
    for row in own.sort("feature_rank", maintain_order=True).to_dicts():
        score = ", ".join(f"{name} {row[name]:.2f}" for name in scores if row[name] is not None)
        found.setdefault((row["layer"], row["feature"]), []).append(f"{row['concept']} ({score})")
    return found


def _activations(
    data: Data,
    subject: Subject,
    dictionary: Dictionary,
    wanted: dict[int, np.ndarray],
    progress: Progress,
) -> dict[int, sparse.csc_matrix]:
    """CSC `[tokens, features wanted]` by layer."""
    sites = [site for site in dictionary_sites("dictionary", dictionary) if site.layer in wanted]
    hookpoints = sorted({site.hookpoint for site in sites})
    parts: dict[int, list[tuple[np.ndarray, ...]]] = {site.layer: [] for site in sites}
    for first, batch in progress(list(data.batches(BATCH_TOKENS)), "activations of the features to explain"):

        def take(i: int, x: Tensor, start: int = int(data.table.sequence_ptr[first])) -> None:
            for site in sites:
                if site.hookpoint == hookpoints[i]:
                    rows, columns, values = site.encode(x.flatten(0, 1))
                    keep = np.isin(columns, wanted[site.layer])
                    place = np.searchsorted(wanted[site.layer], columns[keep])
                    parts[site.layer].append((values[keep], rows[keep] + start, place))

        moved = batch.to(subject.device)
        record(subject, moved, hookpoints, take)
    found = {}
    for layer, collected in parts.items():
        values, rows, columns = (np.concatenate(part) for part in zip(*collected, strict=True))
        shape = data.table.n_tokens, len(wanted[layer])
        found[layer] = sparse.csc_matrix((values, (rows, columns)), shape=shape)
    return found
