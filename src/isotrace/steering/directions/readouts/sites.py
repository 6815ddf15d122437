"""Single places at which the subject is to predict a token: masked alone, or, of a causal subject, read before it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.datasets.tasks import Example
from isotrace.subjects.subject import Batch, Subject

ROWS = 64


@dataclass(frozen=True)
class Site:
    """Of example `row`, the token at `position`."""

    row: int
    position: int


def sites_where(
    subject: Subject, examples: Sequence[Example], wanted: Callable[[int], bool], each: int, seed: int
) -> list[Site]:
    """At most `each` places of every sequence, drawn at random from those whose token id is `wanted`; special tokens
    and, of a subject that predicts the next token, the first place are none."""
    rng, found = np.random.default_rng((seed, 6)), []
    first = 1 if subject.predicts_next else 0
    for row, example in enumerate(examples):
        special = subject.special(torch.from_numpy(example.ids)).cpu().numpy()
        places = [p for p in range(first, len(example.ids)) if not special[p] and wanted(int(example.ids[p]))]
        chosen = rng.permutation(places)[:each] if places else []
        found += [Site(row, int(p)) for p in sorted(chosen)]
    return found


def asked(subject: Subject, examples: Sequence[Example], sites: Sequence[Site]) -> Iterator[tuple[Batch, Tensor]]:
    """(padded batch with a row for each site, the token there hidden from the subject; the place where it is
    predicted `[rows]`), in the order of `sites`. Raises SubjectError for a subject that predicts no tokens."""
    for start in range(0, len(sites), ROWS):
        part = sites[start : start + ROWS]
        width = max(len(examples[site.row].ids) for site in part)
        ids = torch.full((len(part), width), subject.pad_id)
        mask, places = torch.zeros(len(part), width, dtype=torch.bool), []
        for i, site in enumerate(part):
            row = torch.from_numpy(examples[site.row].ids)
            ids[i, : len(row)], mask[i, : len(row)] = row, True
            places.append(subject.reading_position(site.position))
            if subject.mask_id is not None:
                ids[i, site.position] = subject.mask_id
        yield Batch(ids, mask, (), ()).to(subject.device), torch.tensor(places, device=subject.device)


def at(x: Tensor, places: Tensor) -> Tensor:
    """`[rows, …]`: `x [rows, tokens, …]` at one place each."""
    return x[torch.arange(len(x), device=x.device), places]
