"""Annotation of a dictionary: which concept each feature marks, how well, and how well anything else would.

1. steps     activations of the dictionary and of every null, and what each layer of them marks (see `steps`)
2. combine   p and q over all layers of a source; concepts known, with intervals
3. describe  the dictionary's features: label, examples, histogram, structure, effect on the output

Every step leaves a file in `work`; the same call after an interruption goes on behind the last one. `CACHE` is raised
when what such a file holds is computed differently.
"""

import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from isotrace.annotation.cards import describe
from isotrace.annotation.combine import combine
from isotrace.annotation.nulls import sources
from isotrace.annotation.sequences import combine_sequences
from isotrace.annotation.steps import Steps
from isotrace.annotation.summary import COLUMNS, concepts_of, coverage_of, source_summary, warnings_of
from isotrace.base.errors import InputError
from isotrace.base.identity import identity
from isotrace.base.progress import Progress
from isotrace.base.settings import checked_seed
from isotrace.base.work import Work, claimed, remove
from isotrace.datasets.annotated import Data
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.engine.spread import Helpers
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Subject

CACHE = 2
SAID = {"drawn": "nulls", "harvested": "activations", "shuffled": "shuffles", "examined": "statistics"}


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
    helpers: Helpers | None = None,
    progress: Progress = lambda items, _: items,
) -> Annotation:
    """`name_of`: the dictionary's source, for the summary. `untrained`: a re-initialised subject and its dictionary,
    instead of training one here. `work`: a folder for what is computed on the way, of nothing else; what was written
    there is removed at the end. `helpers`: others who do steps of it, see `steps_of`. Raises InputError if no concept
    can be tested, RunError as `claimed`."""
    subject.require_float32("an annotation")
    steps = steps_of(subject, dictionary, data, work, config, untrained)
    with claimed(work, _key(subject, dictionary, steps.data, config, untrained)):
        found = _annotate(steps, name_of, helpers, progress)
        remove(work)
    return found


def steps_of(
    subject: Subject, dictionary: Dictionary, data: Data, work: Path, config: AnnotationConfig,
    untrained: tuple[Subject, Dictionary] | None,
) -> Steps:  # fmt: skip
    """Of what `annotate` is given; its `do` is what one of `helpers` does with each step."""
    data = data.by_sequence() if is_pooled(dictionary.config.reads) else data
    return Steps(subject, dictionary, data, config, untrained, Work(work))


def _annotate(steps: Steps, name_of: str, helpers: Helpers | None, progress: Progress) -> Annotation:
    started = time.monotonic()
    subject, dictionary, data, config = steps.subject, steps.dictionary, steps.data, steps.config
    reasons = steps.reasons
    if all(reason is not None for reason in reasons):
        raise InputError(f"no concept can be tested; the first: {reasons[0] if reasons else 'there is none'}.")
    _made(steps, helpers, progress)
    results, sequence_level, notes = {}, [], {}
    for name in sources.NAMES:
        if name not in steps.widths:
            notes[name] = "not asked for" if name not in config.sources else "does not apply to this subject"
            continue
        layers = steps.widths[name]
        results[name] = combine(name, {layer: steps.site(name, layer) for layer in layers}, steps.table.token_concepts)
        pooled = {layer: steps.sequences(name, layer) for layer in layers}
        sequence_level.append(combine_sequences(name, pooled, data, steps.sequence_reasons))
    token = results["dictionary"].frame
    loaders = {layer: partial(steps.load, "dictionary", layer) for layer in dictionary.config.layers}
    features, examples = describe.features(
        subject, dictionary, data, loaders, token, sequence_level[0], config, progress
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
        "n_token_concepts": int(steps.tested.sum()),
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


def _made(steps: Steps, helpers: Helpers | None, progress: Progress) -> None:
    """Every step that is left, by `helpers` where there are some."""
    for kind in ("drawn", "harvested", "shuffled", "examined"):
        every = steps.of(kind)
        if kind == "shuffled" and (helpers is None or len(steps.of("examined")) >= 2 * helpers.workers):
            continue  # layers are parts enough
        if helpers is not None:
            helpers.do([step for step in every if not steps.is_done(step)], SAID[kind])
        for name in dict.fromkeys(step.source for step in every):
            own = [step for step in every if step.source == name]
            for step in own if kind == "drawn" else progress(own, f"{SAID[kind]} ({name})"):
                if not steps.is_done(step):
                    steps.do(step)


def _key(subject, dictionary, data, config, untrained) -> list[Any]:
    """All that the files in `work` depend on."""
    table = data.table
    # What they do not depend on may change without losing them.
    settings = {k: v for k, v in asdict(config).items() if k not in ("effects", "spellings", "stability_sequences")}
    arrays = table.sequence_ptr, table.concept_ptr, table.instance_ptr, table.tokens, table.numbers, data.held
    concepts = [(c.name, c.kind) for c in (*table.token_concepts, *table.sequence_concepts)]
    return [CACHE, subject, dictionary, untrained, settings, concepts, arrays, data.special, data.ids]
