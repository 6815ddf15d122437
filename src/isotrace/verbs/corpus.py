"""Sequences of a file, to train or evaluate on; what the domain or the subject cannot read joins the rejects."""

from collections.abc import Callable
from typing import Any

import polars as pl

from isotrace.activations.harvest import Corpus
from isotrace.base.errors import InputError
from isotrace.datasets.inputs import read_inputs, rejects_frame
from isotrace.domains.domain import domain_of
from isotrace.subjects.subject import Subject


def read_corpus(subject: Subject, data: Any, column: str | None) -> tuple[Corpus, pl.DataFrame]:
    """(corpus, rejects: index, input, reason). Raises InputError when nothing is left, with the first reason."""
    rows, rejects = read_inputs(data, column=column)
    refused, kept, check = rejects.rows(), [], domain_check(subject)
    for index, text in rows.select("index", "sequence").rows():
        try:
            check(text)
            kept.append((index, text))
        except InputError as error:
            refused.append((index, text, str(error)))
    corpus = Corpus.of(subject, [text for _, text in kept])
    refused += [(kept[i][0], text, why) for i, text, why in corpus.rejects]
    if not len(corpus.ids):
        raise InputError(f"no row of {data!r} can be used; first reason: {refused[0][2]}")
    return corpus, rejects_frame(refused)


def usable(subject: Subject, data: Any, column: str | None, limit: int | None) -> tuple[list[str], pl.DataFrame]:
    """(the first `limit` sequences that the subject and its domain can read, rejects): rows behind the last one taken
    are not looked at."""
    rows, rejects = read_inputs(data, column=column)
    sequences, refused, check = [], [], domain_check(subject)
    for index, text in rows.select("index", "sequence").rows():
        if limit is not None and len(sequences) == limit:
            break
        try:
            subject.tokenize([text])
            check(text)
            sequences.append(text)
        except InputError as error:
            refused.append((index, text, str(error)))
    return sequences, rejects_frame([*rejects.rows(), *refused])


def domain_check(subject: Subject) -> Callable[[str], None]:
    """What raises InputError for a sequence that is none in the subject's domain; nothing does without a domain.
    Raises InputError itself for a domain that is not known."""
    return (lambda text: None) if subject.files.domain is None else domain_of(subject.files.domain).check
