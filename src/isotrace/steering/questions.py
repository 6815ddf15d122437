"""What a subject is asked so that its distributions can be compared: which passes, and where they are read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from isotrace.base.errors import InputError, SubjectError
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.subject import Batch, Changes, Subject

PASS_TOKENS = 4_096


@dataclass(frozen=True, eq=False)
class Questions:
    """Passes of `subject` over `batches`; the logits at `places[i] [batch, tokens]` bool predict the tokens
    `truth[i] [n]`, which belong to the inputs `rows[i] [n]`, numbered through all of them."""

    subject: Subject
    batches: tuple[Batch, ...]
    places: tuple[Tensor, ...]
    truth: tuple[Tensor, ...]
    rows: tuple[Tensor, ...]

    @classmethod
    def of(cls, subject: Subject, batches: Iterable[Batch]) -> "Questions":
        """About the tokens `Batch.sites`, None = all real ones that are not special. A masked subject is asked about
        each masked alone, a causal one about each from what stands before it, an encoder–decoder about each
        teacher-forced. Raises SubjectError for a subject that predicts no tokens, InputError where no token is asked
        about."""
        if not subject.has_head:
            raise SubjectError(f"{subject.source} has no language-model head, so it has no distribution to compare.")
        found: list[tuple[Batch, Tensor, Tensor, Tensor]] = []
        first = 0
        for batch in batches:
            batch = batch.to(subject.device)
            real = batch.mask & ~subject.special(batch.ids)
            about = real if batch.sites is None else batch.mask & batch.sites
            numbers = torch.arange(first, first + len(about), device=about.device)
            first += len(about)
            found += _masked(subject, batch, about, numbers) if subject.objective == "masked" else _read(
                subject, batch, about, numbers)  # fmt: skip
        if not sum(len(truth) for _, _, truth, _ in found):
            raise InputError("no token to compare distributions at: give longer sequences, or sites.")
        return cls(subject, *map(tuple, zip(*found, strict=True)))  # pyright: ignore[reportArgumentType]

    @property
    def inputs(self) -> int:
        return len(torch.cat(self.rows).unique())

    @property
    def n(self) -> int:
        """Tokens asked about."""
        return sum(map(len, self.truth))

    @cached_property
    def plain(self) -> tuple[Tensor, ...]:
        """`answers` without any edit."""
        return tuple(self.answers())

    def answers(self, plan: Changes | None = None) -> Iterator[Tensor]:
        """Log-probabilities `[n, vocabulary]` of every batch, in nats, under `plan`."""
        return (said for _, said in self.read(plan))

    @torch.no_grad()
    def read(self, plan: Changes | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """(final hidden states `[n, d_model]` that predict, `answers`) of every batch."""
        for batch, places in zip(self.batches, self.places, strict=True):
            with fast_kernels(self.subject):
                final = self.subject.run(batch, plan=plan, logits=False).final[places]
                yield final, self.subject.head(final).log_softmax(-1)


def _masked(subject: Subject, batch: Batch, about: Tensor, numbers: Tensor):
    """Every token asked about masked alone, several copies of the sequences in a pass."""
    if subject.mask_id is None:
        raise SubjectError(f"the tokenizer of {subject.source} has no mask token, so no token can be hidden from it.")
    row, place = about.nonzero(as_tuple=True)
    step = max(1, PASS_TOKENS // batch.ids.shape[1])
    for rows, at in zip(row.split(step), place.split(step), strict=True):
        here = torch.zeros_like(batch.mask[rows])
        here[torch.arange(len(rows)), at] = True
        texts, spans = (
            tuple(part[i] for i in rows.tolist()) if part else () for part in (batch.sequences, batch.offsets)
        )
        ids = batch.ids[rows].masked_fill(here, subject.mask_id)
        sites = (batch.mask & ~subject.special(batch.ids) if batch.sites is None else batch.sites)[rows]
        copies = Batch(ids, batch.mask[rows], texts, spans, sites)
        yield copies, here, batch.ids[rows][here], numbers[rows]


def _read(subject: Subject, batch: Batch, about: Tensor, numbers: Tensor):
    """All tokens asked about in one pass: at their own place in a decoder that reads them one place later, at the place
    before in one that reads them as they are."""
    places = about
    if subject.objective != "denoising":
        about = about.clone()
        about[:, 0] = False
        places = torch.nn.functional.pad(about[:, 1:], (0, 1))
    sites = about if batch.sites is None else batch.sites
    yield replace(batch, sites=sites), places, batch.ids[about], numbers[about.nonzero()[:, 0]]
