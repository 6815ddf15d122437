"""Which features of a dictionary are active in some sequences, token by token, or in a sequence as a whole; or what one
of them reads, follows and writes."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from isotrace.base.errors import InputError
from isotrace.verbs.request import Loaded, OnDictionary, Progress, Seeded, verb

if TYPE_CHECKING:
    from isotrace.report.connections import ConnectionsResult
    from isotrace.report.features import FeatureTable


class FeaturesRequest(OnDictionary, Seeded):
    data: Loaded = None
    """Sequences (a file, - for stdin; in Python also a list, a table, molecules); with --feature those of the shelf."""
    feature: str | None = None
    """LAYER.FEATURE: what this one reads, follows and writes, over all inputs."""
    permutations: int = Field(default=10, ge=1)
    """With --feature: orders of the decoder rows that edges are judged against."""
    shown: int = Field(default=12, ge=1)
    """With --feature: rows of each relation."""
    out: Path | None = None
    """Run folder; without it only what is printed."""
    limit: int | None = Field(default=None, ge=1)
    """Take only the first usable rows."""

    def look(self) -> None:
        super().look()
        if self.data is None and self.feature is None:
            raise InputError("features needs sequences: give --data FILE, or one feature with --feature LAYER.FEATURE.")
        if self.feature is not None and not re.fullmatch(r"\d+\.\d+", self.feature, re.ASCII):
            raise InputError(f"--feature {self.feature!r}: give LAYER.FEATURE, such as 3.128.")


@verb(FeaturesRequest)
def features(request: FeaturesRequest, progress: Progress) -> "FeatureTable | ConnectionsResult":
    """Activations of a dictionary's features in every sequence, with the atoms or residues they stand at.

    With `feature` a ConnectionsResult: what that one reads at its own token, follows at others and writes, over all of
    the sequences.
    """
    import polars as pl

    from isotrace.datasets.inputs import read_inputs, rejects_frame
    from isotrace.dictionaries.features import active_features, batches_of
    from isotrace.domains.domain import domain_of
    from isotrace.report.features import FeatureTable
    from isotrace.verbs.loading import dictionary_of, label, opened, subject_of

    subject = subject_of(request)
    dictionary = dictionary_of(request.dictionary, subject)
    if request.feature is not None:
        from isotrace.verbs.connecting import connected

        return connected(request, subject, dictionary, progress)
    domain = None if subject.files.domain is None else domain_of(subject.files.domain)
    table, rejects = read_inputs(request.data, column=request.column)
    kept, refused = [], rejects.rows()
    for row in table.rows(named=True):
        if len(kept) == request.limit:
            break
        try:
            batch = subject.tokenize([row["sequence"]])
            tokens = subject.tokens(batch.ids[0])
            elements = [()] * len(tokens)
            if domain is not None:
                elements = domain.read(row["sequence"], tokens, batch.offsets[0]).elements
            order = row.get("original")
            elements = elements if order is None else [[order[i] for i in part] for part in elements]
            kept.append((row["index"], row["sequence"], tokens, elements))
        except InputError as error:
            refused.append((row["index"], row["sequence"], str(error)))
    if not kept:
        raise InputError(f"no row of {label(request.data)!r} can be used; first reason: {refused[0][2]}")
    with opened(request, request.out, subject, dictionary) as run:
        batches = batches_of(subject, [text for _, text, _, _ in kept])
        parts = []
        shown = iter(progress([batch for _, batch in batches], "features"))
        for places, found in zip(
            (rows for rows, _ in batches), active_features(subject, dictionary, shown), strict=True
        ):
            rows = [kept[places[sequence]] for sequence in found["sequence"]]
            at = [None if position < 0 else position for position in found["position"].tolist()]
            about = [(None, []) if p is None else (row[2][p], row[3][p]) for row, p in zip(rows, at, strict=True)]
            parts.append(
                pl.DataFrame(
                    {
                        "index": [row[0] for row in rows],
                        "position": pl.Series(at, dtype=pl.Int64),
                        "token": pl.Series([token for token, _ in about], dtype=pl.String),
                        "elements": pl.Series([elements for _, elements in about], dtype=pl.List(pl.Int64)),
                        **{name: found[name] for name in ("layer", "feature", "activation")},
                    }
                )
            )
        frame = pl.concat(parts).sort("index", "position", "layer", "feature", maintain_order=True)
        rejects = rejects_frame(refused)
        summary = {
            "subject": subject.source,
            "dictionary": label(request.dictionary),
            "n_sequences": len(kept),
            "n_tokens": sum(len(tokens) for _, _, tokens, _ in kept),
            "n_active": frame.height,
            "n_features": frame.select("layer", "feature").n_unique(),
            "rejects": rejects.to_dicts(),
        }
        result = FeatureTable(summary, tables={"features": frame, "rejects": rejects})
        if run is not None:
            result.write(run)
    return result
