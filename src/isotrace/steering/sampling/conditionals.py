"""What weighted sampling asks: conditionals p(x_place | what is filled in), of a table or of a subject."""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from isotrace.base.errors import InputError, SubjectError
from isotrace.interventions.plan import Plan
from isotrace.steering.decoding.run import BATCH_TOKENS
from isotrace.subjects.generation import padded, read_so_far, start_of
from isotrace.subjects.subject import Batch, Memory, Subject

OPEN = -1
"""What stands where nothing is filled in yet."""


class Conditionals(Protocol):
    """`n_places` places are to be filled with one of `n_words` words each. `ordered`: only from left to right."""

    n_places: int
    n_words: int
    ordered: bool
    forwards: int

    def log_p(self, filled: Tensor, places: Tensor) -> Tensor:
        """log p `[n, k, n_words]` at each of the open `places [n, k]`, given what of `filled [n, n_places]` int64 is
        not `OPEN`; normalised."""
        ...


class Table:
    """A joint distribution written out, `joint [words, …, words]` of as many axes as there are places: its conditionals
    are those of one law, whatever the order. Raises InputError where it is none."""

    ordered = False
    forwards = 0

    def __init__(self, joint: Tensor) -> None:
        if not bool((joint >= 0).all()) or not bool(torch.isclose(joint.sum(), joint.new_ones(()))):
            raise InputError("a joint distribution is at least 0 and sums to 1: normalise it.")
        self.joint, self.n_places, self.n_words = joint.double(), joint.ndim, joint.shape[0]

    def log_p(self, filled: Tensor, places: Tensor) -> Tensor:
        """All rows must have the same places open."""
        known = (filled[0] != OPEN).nonzero()[:, 0].tolist()
        found = []
        for place in places[0].tolist():
            rest = [i for i in range(self.n_places) if i not in known and i != place]
            table = self.joint.sum(rest, keepdim=True) if rest else self.joint
            table = table.permute(*known, place, *rest).reshape(-1, self.n_words)
            at = torch.zeros(len(filled), dtype=torch.long)
            for i in known:
                at = at * self.n_words + filled[:, i]
            found.append(table[at] / table[at].sum(-1, keepdim=True))
        return torch.stack(found, 1).log()


class SubjectConditionals:
    """Those of a subject, edited by `plan` or not. The words are its tokens; what `allowed` does not name is never
    written.

    A masked subject fills the `sites` of a start, in any order. A causal one goes on behind its start, and a decoder
    writes from what its encoder reads of it, `n_new` places from left to right; behind the token that ends a sequence
    only that token follows. Raises SubjectError for a subject without a head, InputError for a start that cannot be
    read and for sites or numbers that do not fit.
    """

    def __init__(
        self, subject: Subject, start: str, *, sites: Sequence[int] | None = None, n_new: int | None = None,
        allowed: Sequence[str] | None = None, plan: Plan = Plan(),  # noqa: B008
    ) -> None:  # fmt: skip
        if not subject.has_head:
            raise SubjectError(f"{subject.source} has no language-model head, so it writes nothing: take one that has.")
        self.subject, self.plan, self.forwards = subject, plan, 0
        self.batch = subject.tokenize([start])
        self.ordered, self.n_words = subject.objective != "masked", len(subject.tokenizer)
        ids = self.batch.ids[0]
        self.end = cast("int | None", subject.tokenizer.eos_token_id) if self.ordered else None
        if self.ordered:
            if sites is not None or n_new is None or n_new < 1:
                raise InputError(f"{subject.source} writes from left to right: give n_new ≥ 1, and no sites.")
            begin = [start_of(subject)] if len(subject.stack_sizes) > 1 else ids.tolist()
            while len(subject.stack_sizes) == 1 and begin and begin[-1] == self.end:
                begin.pop()
            self.begin, self.n_places = torch.tensor(begin), n_new
            if len(begin) + n_new > subject.max_tokens:
                raise InputError(f"{len(begin)} + {n_new} tokens are more than {subject.source} takes: write fewer.")
        else:
            free = (~subject.special(ids)).nonzero()[:, 0].tolist()
            self.sites = free if sites is None else [*sites]
            if n_new is not None or not self.sites or not {*self.sites} <= {*free}:
                raise InputError(f"name sites among {free[0]} to {free[-1]}, and no n_new: it fills masks.")
            self.n_places = len(self.sites)
        words = subject.tokenizer.get_vocab() if allowed is None else allowed
        self.barred = torch.ones(self.n_words, dtype=torch.bool)
        self.barred[[subject.token_id(word) for word in words]] = False
        self.barred |= subject.is_special
        if self.end is not None:
            self.barred[self.end] = False
        if bool(self.barred.all()):
            raise InputError("no word is allowed: allow some.")
        self._memory: Memory | None = None

    def ids(self, filled: Tensor) -> Tensor:
        """Tokens `[n, tokens]` of the whole sequences; open places are masked, or left out where they come last."""
        if self.ordered:
            n_filled = int((filled[0] != OPEN).sum())
            return torch.cat([self.begin.expand(len(filled), -1), filled[:, :n_filled]], 1)
        ids = self.batch.ids.cpu().repeat(len(filled), 1)
        ids[:, self.sites] = torch.where(filled == OPEN, int(self.subject.mask_id or 0), filled)
        return ids

    def texts(self, filled: Tensor) -> list[str]:
        rows = self.subject.tokenizer.batch_decode(self.ids(filled).tolist(), skip_special_tokens=True)
        return [text.replace(" ", "") for text in rows]

    @torch.no_grad()
    def log_p(self, filled: Tensor, places: Tensor) -> Tensor:
        rows, which = self.ids(filled).unique(dim=0, return_inverse=True)  # particles of one past share a pass
        ended = (filled == self.end).any(1) if self.end is not None else torch.zeros(len(filled), dtype=torch.bool)
        size = max(1, BATCH_TOKENS // rows.shape[1])
        logits = torch.cat([self._logits(part) for part in rows.split(size)])
        self.forwards += len(rows)
        said = logits[..., : self.n_words].double().masked_fill(self.barred, -torch.inf).log_softmax(-1)
        found = said[which][:, None] if self.ordered else said[which[:, None], torch.tensor(self.sites)[places]]
        if self.end is not None:
            over = torch.full_like(found, -torch.inf)
            over[..., self.end] = 0.0
            found = torch.where(ended[:, None, None], over, found)
        return found

    def _logits(self, rows: Tensor) -> Tensor:
        """`[rows, tokens, vocabulary]`, or `[rows, vocabulary]` of what follows."""
        subject, source = self.subject, self.batch if len(self.subject.stack_sizes) > 1 else None
        ids, mask = read_so_far(subject, rows.tolist()) if self.ordered else padded(subject, rows.tolist())
        batch = Batch(ids, mask, (), (), self._sites(ids), source)
        logits = subject.run(batch, plan=self.plan).logits
        assert logits is not None
        return (logits[:, -1] if self.ordered else logits).cpu()

    def _sites(self, ids: Tensor) -> Tensor:
        """What is written or may change, see `Batch.sites`."""
        places = torch.arange(ids.shape[1], device=ids.device)
        if self.ordered:
            return (places >= len(self.begin) - (self.subject.objective == "denoising")).expand_as(ids)
        return torch.isin(places, torch.tensor(self.sites, device=ids.device)).expand_as(ids)
