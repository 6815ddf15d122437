"""Sequences of a file as a corpus; what the domain or the subject cannot read joins the rejects."""

import polars as pl

from isotrace.activations.harvest import Corpus
from isotrace.domains.molecule import parse
from isotrace.errors import InputError
from isotrace.inputs import read_inputs, rejects_frame
from isotrace.subjects.subject import Subject


def read_corpus(subject: Subject, data: str, column: str | None) -> tuple[Corpus, pl.DataFrame]:
    """(corpus, rejects: index, input, reason). Raises InputError when nothing is left, with the first reason."""
    rows, rejects = read_inputs(data, column=column)
    refused, kept = rejects.rows(), []
    for index, text in rows.select("index", "sequence").rows():
        try:
            if subject.files.domain == "molecule":
                parse(text)
            kept.append((index, text))
        except InputError as error:
            refused.append((index, text, str(error)))
    corpus = Corpus.of(subject, [text for _, text in kept])
    refused += [(kept[i][0], text, why) for i, text, why in corpus.rejects]
    if not len(corpus.ids):
        raise InputError(f"no row of {data!r} can be used; first reason: {refused[0][2]}")
    return corpus, rejects_frame(refused)
