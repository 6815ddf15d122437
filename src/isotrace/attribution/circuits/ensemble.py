"""An ensemble around one input: the same text with one token changed, so that positions, and nodes, stay what they are.

A change masks the token, where the subject knows masks, or puts another in its place: drawn from what the subject
itself predicts there, or, without a language-model head, from the tokens at the other positions. Special tokens and the
positions that a target asks about stay. Part of the positions is held out: what is learned never sees a change there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target

HELD_OUT = 1 / 3
"""Share of the positions where only members that are held out differ from the input."""


@dataclass(frozen=True)
class Ensemble:
    """`learn`: the input itself, then members to learn from; `held_out`: members changed at other positions. Both
    `[members, tokens]`, prepared for the target; `held_out` is empty where fewer than two positions can be changed."""

    learn: Batch
    held_out: Batch


@torch.no_grad()
def ensemble(subject: Subject, batch: Batch, target: Target, *, n_learn: int, n_held_out: int, seed: int) -> Ensemble:
    """Around the one prepared sequence of `batch`. Positions are drawn anew when all have been used once."""
    generator = torch.Generator().manual_seed(seed)
    free = ~subject.special(batch.ids[0])
    for position in target.asked:
        free[position : position + 1] = False  # a causal subject may be asked behind the end
        if subject.predicts_next:  # what comes later changes nothing
            free[position:] = False
    places = torch.nonzero(free)[:, 0].cpu()
    places = places[torch.randperm(len(places), generator=generator)]
    n_out = min(len(places) - 1, max(1, round(HELD_OUT * len(places)))) if len(places) > 1 else 0
    parts = places[:n_out][:n_held_out], places[n_out:][:n_learn]  # of a long text most are never changed
    others = _others(subject, batch, torch.cat(parts)).split([len(part) for part in parts])
    members = zip(parts, others, (n_held_out, n_learn), strict=True)
    held_out, learn = (_changed(subject, batch, *part, generator) for part in members)
    return Ensemble(_stacked(batch, torch.cat([batch.ids, learn])), _stacked(batch, held_out))


def _stacked(batch: Batch, ids: Tensor) -> Batch:
    return Batch(ids, batch.mask.expand(len(ids), -1), (), ())


def _others(subject: Subject, batch: Batch, places: Tensor) -> Tensor:
    """Probability of every token of the vocabulary at each of `places` of another text, `[places, vocabulary]`."""
    own, rows = batch.ids[0, places].cpu(), torch.arange(len(places))
    if subject.has_head and len(places) and not (subject.predicts_next and int(places.min()) == 0):
        ids = batch.ids.repeat(len(places), 1)
        if subject.mask_id is not None:
            ids[rows, places] = subject.mask_id
        read = torch.tensor([subject.reading_position(int(p)) for p in places])
        with fast_kernels(subject):
            final = subject.hidden(ids, batch.mask.expand(len(ids), -1))
        found = subject.head(final[rows, read]).softmax(-1).cpu()
        found[:, subject.special(torch.arange(found.shape[1], device=batch.ids.device)).cpu()] = 0
    else:
        found = torch.zeros(len(places), len(subject.tokenizer)).index_add_(1, own, torch.ones(len(places), len(own)))
    found[rows, own] = 0
    return found


def _changed(
    subject: Subject, batch: Batch, places: Tensor, others: Tensor, n: int, generator: torch.Generator
) -> Tensor:
    """`[n, tokens]` ids, each changed at one of `places`; every second one masked, where the subject knows masks."""
    ids, hidden = batch.ids.repeat(n if len(places) else 0, 1), subject.mask_id
    for row in range(len(ids)):
        which = row % len(places)
        weights = others[which]
        possible = bool((weights > 0).any())
        if hidden is not None and ((row // len(places) + which) % 2 == 0 or not possible):
            ids[row, places[which]] = hidden
        elif possible:
            ids[row, places[which]] = int(torch.multinomial(weights, 1, generator=generator))
    return ids
