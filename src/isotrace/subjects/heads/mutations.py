"""The target `mutation:A24G[:K31R…]`: what a subject that fills masks says of a variant of the sequence.

Σ over the mutated sites of log p(after) − log p(before), with the mutated sites masked all at once (masked marginals:
Meier et al. 2021, NeurIPS 34). The normaliser of the softmax cancels, so that it is a sum of differences of logits, and
exact in the linearised subject as `diff:` is. Sites count the residues of the sequence from 1, whatever the tokens are.
"""

from typing import TYPE_CHECKING

import numpy as np

from isotrace.base.errors import InputError, SubjectError
from isotrace.domains.domain import Reading, domain_of
from isotrace.domains.mutations import Mutation, residue_changes
from isotrace.subjects.targets import TARGETS, Target

if TYPE_CHECKING:
    from isotrace.subjects.subject import Batch, Subject

Swap = tuple[int, int, int]
"""Token position, token id before, token id after."""


@TARGETS.named("mutation")
def mutation_target(text: str, subject: "Subject", batch: "Batch | None" = None) -> Target:
    """Of the first sequence of `batch`; without one, what fits no sequence is refused all the same. Raises InputError
    for mutations that do not fit, SubjectError for a subject that is not of residues or does not fill masks."""
    changes = residue_changes(text.partition(":")[2])
    domain = None if subject.files.domain is None else domain_of(subject.files.domain)
    if domain is None or domain.element != "residue":
        raise SubjectError(
            f"{text!r} changes residues, and {subject.source} {_reads(subject)}: ask a subject of proteins or "
            "antibodies, or for diff:POS:A:B."
        )
    if subject.predicts_next:
        raise SubjectError(
            f"{subject.source} reads from left to right and weighs a mutation by the likelihoods of two whole "
            "sequences, which are no sum over one pass: ask for diff:POS:A:B, what it expects there from all before it."
        )
    for one in changes:
        subject.reading_position(one.site)
        if one.site > subject.max_tokens:
            raise InputError(f"mutation {one} is out of range: {subject.source} takes {subject.max_tokens} tokens.")
    if batch is None:
        return Target("mutation", text, "", "log-odds")
    ids = batch.ids[0]
    reading = domain.read(batch.sequences[0], subject.tokens(ids), batch.offsets[0])
    found = swaps(subject, ids.cpu().numpy(), reading, changes)
    sites = "its site masked" if len(found) == 1 else f"{len(found)} sites masked together"
    description = f"log-odds of {':'.join(map(str, changes))}, {sites}"
    return Target("mutation", text, description, "log-odds", swaps=found)


def swaps(subject: "Subject", ids: np.ndarray, reading: Reading, changes: list[Mutation]) -> tuple[Swap, ...]:
    """Of tokenised `ids [tokens]` and how they are read. Raises InputError for a mutation that does not fit."""
    token_of = {element: place for place, part in enumerate(reading.elements) for element in part}
    found = []
    for one in changes:
        if one.site - 1 not in token_of:
            raise InputError(
                f"mutation {one} is none of this sequence: its residues count from 1 to {reading.n_elements}"
            )
        place = token_of[one.site - 1]
        unit = reading.units[place]
        stands = reading.text[unit.start : unit.end]
        if len(reading.elements[place]) > 1:
            raise InputError(f"mutation {one} is inside the token {stands}, which writes several residues at once")
        if token_of_letter(subject, one.before) != ids[place]:
            raise InputError(f"mutation {one} does not fit: {stands} stands there")
        found.append((place, int(ids[place]), token_of_letter(subject, one.after)))
    return tuple(found)


def token_of_letter(subject: "Subject", letter: str) -> int:
    """The token that writes one residue, whatever the tokenizer puts around it. Raises InputError where none does."""
    ids, spans, _ = subject.tokenized([letter])[0]
    own = [i for i, (start, end) in zip(ids, spans, strict=True) if start < end]
    if len(own) != 1 or own[0] == subject.tokenizer.unk_token_id:
        raise InputError(f"{letter!r} is no token of {subject.source}: pick one of its vocabulary.")
    return own[0]


def _reads(subject: "Subject") -> str:
    return f"is of the domain {subject.files.domain}" if subject.files.domain else "names no domain"
