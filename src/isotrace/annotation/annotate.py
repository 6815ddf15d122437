"""Annotation of a dictionary: which concept each feature marks, how well, and how well anything else would.

1. harvest   activations of the dictionary and of every null, in chunks on disk
2. examine   each layer of each source: pairs chosen on one side, scored on the other, shuffled (see `site`)
3. combine   p and q over all layers of a source; concepts known, with intervals
4. describe  the dictionary's features: label, examples, histogram, structure, effect on the output

Every step leaves a file in `work`; the same call after an interruption goes on behind the last one. `CACHE` is raised
when what such a file holds is computed differently.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isotrace.activations.harvest import Corpus, record
from isotrace.annotation.cards import describe
from isotrace.annotation.cards.describe import Loader
from isotrace.annotation.combine import combine
from isotrace.annotation.nulls import sources
from isotrace.annotation.sequences import annotate_sequences
from isotrace.annotation.site import Sides, SiteResult, examine
from isotrace.annotation.summary import COLUMNS, concepts_of, coverage_of, source_summary, warnings_of
from isotrace.base.errors import InputError
from isotrace.base.identity import identity
from isotrace.base.progress import Progress
from isotrace.base.settings import checked_seed
from isotrace.base.work import Work, claimed, remove
from isotrace.datasets.annotated import Data, untestable
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.stats.bootstrap import bootstrap_weights
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Subject
from isotrace.training.config import TrainingConfig
from isotrace.training.loop import train_dictionary

CACHE = 1


@dataclass(frozen=True)
class AnnotationConfig:
    """Settings of an annotation.

    sources: what is annotated, of `sources.NAMES`; the dictionary always is.
    quantiles: thresholds, as quantiles of a feature's positive activations; 0 = any positive activation.
    n_permutations: shuffles of the labels; no p is below 1 / (n + 1).
    n_bootstrap: draws of sequences. min_positive: tokens, or sequences with one row each, that a concept needs on each
        side.
    per_feature, per_concept: pairs kept; of the nulls only per_concept.
    null_activations: positive activations per source that every shuffle looks at; beyond, a part of the sequences.
    untrained_tokens: training of the dictionary of the untrained subject.
    spellings: other ways of writing each sequence, for stability; stability_sequences: of how many sequences.
    effects: whether features are ablated to see what they do to the output.
    """

    sources: tuple[str, ...] = sources.NAMES
    quantiles: tuple[float, ...] = (0.0, 0.5, 0.75, 0.9)
    n_permutations: int = 500
    n_bootstrap: int = 200
    min_positive: int = 20
    per_feature: int = 3
    per_concept: int = 3
    null_activations: int = 6_000_000
    untrained_tokens: int = 400_000
    spellings: int = 3
    stability_sequences: int = 300
    effects: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        checked_seed(self.seed)
        if unknown := [name for name in self.sources if name not in sources.NAMES]:
            raise InputError(f"no source {unknown[0]!r}: give some of {', '.join(sources.NAMES)}.")
        if "dictionary" not in self.sources:
            raise InputError("the dictionary itself must be among the sources: add it.")


@dataclass(frozen=True, eq=False)
class Annotation:
    """Tables as docs/annotate.md lists them, and the summary that `--json` prints."""

    features: pl.DataFrame
    associations: pl.DataFrame
    examples: pl.DataFrame
    sequences: pl.DataFrame
    concepts: pl.DataFrame
    coverage: pl.DataFrame
    rejects: pl.DataFrame
    summary: dict[str, Any] = field(default_factory=dict)


def annotate(
    subject: Subject,
    dictionary: Dictionary,
    data: Data,
    work: Path,
    config: AnnotationConfig = AnnotationConfig(),
    *,
    name_of: str = "the dictionary",
    untrained: tuple[Subject, Dictionary] | None = None,
    progress: Progress = lambda items, _: items,
) -> Annotation:
    """`name_of`: the dictionary's source, for the summary. `untrained`: a re-initialised subject and its dictionary,
    instead of training one here. `work`: a folder for what is computed on the way, of nothing else; what was written
    there is removed at the end. Raises InputError if no concept can be tested, RunError as `claimed`."""
    subject.require_float32("an annotation")
    data = data.by_sequence() if is_pooled(dictionary.config.reads) else data
    with claimed(work, _key(subject, dictionary, data, config, untrained)) as folder:
        found = _annotate(subject, dictionary, data, folder, config, name_of, untrained, progress)
        remove(work)
    return found


def _annotate(subject, dictionary, data, work: Work, config, name_of, untrained, progress) -> Annotation:
    started = time.monotonic()
    reasons = untestable(data.table, data.held, data.special, config.min_positive)
    n_token = len(data.table.token_concepts)
    tested = np.asarray([reason is None for reason in reasons[:n_token]], dtype=bool)
    if all(reason is not None for reason in reasons):
        raise InputError(f"no concept can be tested; the first: {reasons[0] if reasons else 'there is none'}.")
    sites = _sites(subject, dictionary, data, config, untrained, work, progress)
    table = data.table.pick(np.flatnonzero(tested))
    results, sequence_level, notes = {}, [], {}
    for name in sources.NAMES:
        if name not in config.sources or not sites.get(name):
            notes[name] = "not asked for" if name not in config.sources else "does not apply to this subject"
            continue
        loaders = sites[name]
        found = {}
        share = _share(loaders, data, config.null_activations)
        sides = Sides.of(table, data.held, data.special, share, config.seed)
        weights = bootstrap_weights(sides.held.table.n_sequences, config.n_bootstrap, (config.seed, 2))
        for layer, load in progress(list(loaders.items()), f"statistics ({name})"):
            file = f"site-{name}.{layer}.npz"
            if not (work.folder / file).is_file():
                examined = examine(
                    load(), sides, weights,
                    quantiles=config.quantiles,
                    per_feature=config.per_feature if name == "dictionary" else 0,
                    per_concept=config.per_concept,
                    n_permutations=config.n_permutations,
                    seed=config.seed,
                )  # fmt: skip
                work.arrays(file, examined.arrays())
            found[layer] = SiteResult.load(work.folder / file)
        results[name] = combine(name, found, table.token_concepts)
        sequence_level.append(annotate_sequences(name, loaders, data, reasons[n_token:], config))
    token = results["dictionary"].frame
    features, examples = describe.features(
        subject, dictionary, data, sites["dictionary"], token, sequence_level[0], config, progress
    )
    frames = [result.frame for result in results.values()] + sequence_level
    associations = pl.concat([pl.DataFrame(schema=COLUMNS), *(f for f in frames if f.height)], how="diagonal_relaxed")
    coverage = coverage_of(results, features)
    summary = {
        "subject": subject.source,
        "subject_id": identity(subject),
        "dictionary": name_of,
        "dictionary_id": identity(dictionary),
        "n_features": features.height,
        "n_concepts": sum(reason is None for reason in reasons),
        "n_token_concepts": int(tested.sum()),
        "n_concepts_untested": sum(reason is not None for reason in reasons),
        "rows": "sequences" if data.whole else "tokens",
        "n_tokens": data.table.n_tokens,
        "n_sequences": len(data.ids),
        "n_selection": int((~data.held).sum()),
        "n_rejected": data.rejects.height,
        "n_permutations": config.n_permutations,
        "config": asdict(config),
        "sources": {name: source_summary(name, results, notes, coverage) for name in sources.NAMES},
        "n_labelled": int((features["label"] != "unexplained").sum()),
        "seconds": round(time.monotonic() - started, 1),
    }
    summary["warnings"] = warnings_of(summary, associations)
    concepts = concepts_of(data, reasons)
    return Annotation(features, associations, examples, data.sequences(), concepts, coverage, data.rejects, summary)


def _sites(subject, dictionary, data, config, untrained, work, progress) -> dict[str, dict[int, Loader]]:
    """Source → layer → how to load its activations, after harvesting what is not there yet."""
    layers = dictionary.config.layers
    own = sources.dictionary_sites("dictionary", dictionary)
    if "neurons" in config.sources and "neuron" in subject.family.hookpoints:
        own += sources.coordinate_sites(dictionary) if data.whole else sources.neuron_sites(subject, layers)
    if "random" in config.sources:
        k = _mean_l0(subject, own[: len(layers)], data)
        own += sources.dictionary_sites("random", sources.random_dictionary(subject, dictionary, data, k, config.seed))
    sources.harvest(subject, own, data, work, "trained", progress)
    groups = [("trained", own)]
    if "untrained" in config.sources:
        blank, learned = untrained or _train_untrained(subject, dictionary, data, config, work)
        other = sources.dictionary_sites("untrained", learned)
        sources.harvest(blank, other, data, work, "untrained", progress)
        groups.append(("untrained", other))
    found: dict[str, dict[int, Loader]] = {}
    for label, part in groups:
        for site in part:
            load = lambda label=label, site=site: sources.load(work.folder, label, site.key, site.n_features)  # noqa: E731
            found.setdefault(site.source, {})[site.layer] = load
    if "token_identity" in config.sources:
        found["token_identity"] = {-1: lambda: sources.token_identity(data, len(subject.tokenizer))}
    return found


def _train_untrained(subject, dictionary, data, config, work) -> tuple[Subject, Dictionary]:
    """The same architecture of dictionary, trained on the same sequences through random weights."""
    blank = sources.untrained_subject(subject, config.seed)
    corpus = Corpus.of(blank, [reading.text for reading in data.readings])
    training = TrainingConfig(tokens=config.untrained_tokens, dead_after=min(200_000, config.untrained_tokens // 4))
    file = work.path("untrained.pt")
    return blank, train_dictionary(blank, corpus, dictionary.config, training, file, measure=False)


def _mean_l0(subject, own, data) -> int:
    """Active features per token and layer on one batch of every tenth length, rounded, at least 1."""
    active = tokens = 0
    for number, (_, batch) in enumerate(data.batches(sources.BATCH_TOKENS)):
        if number % 10 == 0:
            found: list[int] = []
            hookpoints = [site.hookpoint for site in own]
            batch = batch.to(subject.device)
            record(subject, batch, hookpoints, lambda i, x: found.append(len(own[i].encode(x.flatten(0, 1))[2])))  # noqa: B023
            active, tokens = active + sum(found), tokens + sources.rows_of(batch, hookpoints) * len(own)
    return max(1, round(active / tokens))


def _share(loaders: dict[int, Loader], data: Data, budget: int) -> float:
    """Share of the sequences that permutations look at, so that they meet about `budget` positive activations."""
    return min(1.0, 2 * budget / max(sum(load().nnz for load in loaders.values()), 1))


def _key(subject, dictionary, data, config, untrained) -> list[Any]:
    """All that the files in `work` depend on."""
    table = data.table
    # What they do not depend on may change without losing them.
    settings = {k: v for k, v in asdict(config).items() if k not in ("effects", "spellings", "stability_sequences")}
    arrays = table.sequence_ptr, table.concept_ptr, table.instance_ptr, table.tokens, table.numbers, data.held
    concepts = [(c.name, c.kind) for c in (*table.token_concepts, *table.sequence_concepts)]
    return [CACHE, subject, dictionary, untrained, settings, concepts, arrays, data.special, data.ids]
