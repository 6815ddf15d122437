"""One call of a generator: every pass of the subject and every string that is read goes through it and is counted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.domains.domain import domain_of
from isotrace.interventions.plan import Plan
from isotrace.subjects.generation import padded, read_so_far, start_of
from isotrace.subjects.heads.likelihoods import masked_copies
from isotrace.subjects.subject import Batch, Memory, Subject

if TYPE_CHECKING:
    from isotrace.steering.decoding.decoder import Decoder

EditByRound = Plan | Callable[[int], Plan]
"""The edit that is on, or round, counted from 1 → the edit that is on in it."""
BATCH_TOKENS = 4_096
Random = np.random.Generator


@dataclass(frozen=True)
class Start:
    """Row `index` of the starts. `ids`: its tokens, of a causal subject without what ends it. `sites`: positions that
    may change."""

    index: int
    batch: Batch
    ids: tuple[int, ...]
    sites: tuple[int, ...]


@dataclass(frozen=True)
class Design:
    """`start`: the row of its start. `why`: why the parser of the domain does not take it; None: it does. `round`:
    after how many rounds; `early`: rounds follow. `score`: what its generator ranks by, nats, see there. `ended`: it
    ended by itself."""

    start: int
    sequence: str
    why: str | None
    round: int
    score: float | None = None
    ended: bool = True
    early: bool = False

    @property
    def valid(self) -> bool:
        return self.why is None


@dataclass(frozen=True)
class Designs:
    """What a generator wrote. `first`: after the first round, of generators that show it. `rejects`: (row, text, why)
    of the starts that cannot be used. `forwards`: sequences × passes. `seen`: every string that was handed to the
    parser, with what it said."""

    method: str
    settings: dict[str, Any]
    rows: tuple[Design, ...]
    first: tuple[Design, ...]
    rejects: tuple[tuple[int, str, str], ...]
    forwards: int
    seen: Mapping[str, str | None]

    @property
    def distinct(self) -> int:
        return len(self.seen)

    @property
    def valid(self) -> int:
        """Of the distinct strings."""
        return sum(why is None for why in self.seen.values())

    def frame(self) -> pl.DataFrame:
        names = ("start", "round", "sequence", "valid", "why", "score", "ended")
        rows = [[getattr(row, name) for name in names] for row in (*self.first, *self.rows)]
        kinds = (pl.Int64, pl.Int64, pl.String, pl.Boolean, pl.String, pl.Float64, pl.Boolean)
        return pl.DataFrame(rows, schema=dict(zip(names, kinds, strict=True)), orient="row")


class Run:
    """`decoder` asks `subject` under `edit`. Raises InputError for a subject without domain, whose strings nobody can
    parse, and for tokens that it does not have."""

    def __init__(self, subject: Subject, decoder: "Decoder", edit: EditByRound) -> None:
        if subject.files.domain is None:
            raise InputError(f"{subject.source} names no domain, so nothing tells what is valid: give --domain.")
        self.subject, self.decoder, self.domain = subject, decoder, domain_of(subject.files.domain)
        self.edit = (lambda _: edit) if isinstance(edit, Plan) else edit
        self.forwards, self.seen, self.rejects = 0, dict[str, str | None](), list[tuple[int, str, str]]()
        self.barred = subject.is_special.clone()
        self.barred[[subject.token_id(token) for token in decoder.forbidden]] = True
        if bool(self.barred.all()):
            raise InputError("every token is forbidden: leave some.")
        self.end = cast("int | None", subject.tokenizer.eos_token_id)
        self._memory: tuple[Plan, int, Memory] | None = None

    def starts(self, texts: Sequence[str]) -> Iterator[Start]:
        """Those that can be used."""
        for index, text in enumerate(texts):
            try:
                yield self._start(index, text.strip())
            except InputError as error:
                self.rejects.append((index, text, str(error)))

    def _start(self, index: int, text: str) -> Start:
        causal = self.subject.objective == "causal"
        if not causal:
            self.domain.check(text)
        batch = self.subject.tokenize([text])
        ids: list[int] = batch.ids[0].tolist()
        while causal and ids and ids[-1] == self.end:
            ids.pop()
        if not ids:
            raise InputError(f"{text!r} leaves nothing to go on with: give a beginning.")
        free = (~self.subject.special(batch.ids[0])).nonzero()[:, 0].tolist()
        named = self.decoder.sites
        if isinstance(named, Mapping) and index not in named:
            raise InputError(f"no sites are named for row {index}: name some, or leave them out for all.")
        sites = free if named is None else [*(named[index] if isinstance(named, Mapping) else named)]
        if wrong := sorted({*sites} - {*free}):
            raise InputError(f"position {wrong[0]} cannot change: this start has positions {free[0]} to {free[-1]}.")
        if self.decoder.changes_sites and not sites:
            raise InputError("no position may change: name some.")
        return Start(index, batch, tuple(ids), tuple(dict.fromkeys(sites)))

    def random(self, start: Start, number: int) -> Random:
        """Of design `number` of a start."""
        return np.random.default_rng([self.decoder.seed, start.index, number])

    def read(
        self, start: Start, rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]], round: int,
        free: Sequence[Sequence[bool]] | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """Logits `[places, vocabulary]` of each of `rows`, tokens of one sequence each; one pass for a row. `free`:
        which tokens of a row may change, where they stand elsewhere than in the start."""
        found: list[Tensor] = []
        free = free or [[i in start.sites for i in range(len(start.ids))]] * len(rows)
        for part in self._parts(rows):
            ids, mask = padded(self.subject, part)
            sites = padded(self.subject, [[int(one) for one in row] for row in free[len(found) :][: len(part)]])[0] == 1
            whole = ids.shape[1] == start.batch.ids.shape[1] and bool(mask.all())
            about = (start.batch.sequences * len(ids), start.batch.offsets * len(ids)) if whole else ((), ())
            batch = Batch(ids, mask, *about, sites=sites & mask)
            logits = self.subject.run(batch, plan=self.edit(round)).logits
            assert logits is not None  # a generator asks for a head
            found += [row[list(at)] for row, at in zip(logits, places[len(found) :], strict=False)]
        self.forwards += len(rows)
        return found

    def read_masked(self, start: Start, ids: Sequence[int], sites: Sequence[int], round: int = 1) -> Tensor:
        """Logits `[sites, vocabulary]` at each of `sites` of the one row `ids`, masked alone; one pass for each."""
        row = replace(start.batch, ids=torch.tensor([list(ids)], device=start.batch.ids.device))
        copies = masked_copies(self.subject, row, [[site] for site in sites])
        return torch.cat(self.read(start, copies.ids.tolist(), [[site] for site in sites], round))

    @torch.no_grad()
    def read_next(self, start: Start, rows: Sequence[Sequence[int]], round: int, begun: int = 1) -> Tensor:
        """Logits `[rows, vocabulary]` of the token behind each of `rows`; one pass for a row, and one more where the
        encoder reads the start anew, as it does under another plan. `begun`: the tokens of a row that were given."""
        plan, found = self.edit(round), []
        for part in self._parts(rows):
            source = start.batch if len(self.subject.stack_sizes) > 1 else None
            ids, mask = read_so_far(self.subject, part)
            written = torch.arange(ids.shape[1], device=ids.device) >= begun - (self.subject.objective == "denoising")
            batch = Batch(ids, mask, (), (), mask & written, source)
            asked = self.subject if source is None else self.subject.translating(self._encoded(start, batch, plan))
            last = torch.tensor([len(row) - 1 for row in part], device=batch.ids.device)
            with self.subject.edited(plan.on(self.subject, batch)):
                final = asked.hidden(batch.ids, batch.mask)
                found.append(asked.head(final[torch.arange(len(part), device=last.device), last]))
        self.forwards += len(rows)
        return torch.cat(found)

    def _encoded(self, start: Start, batch: Batch, plan: Plan) -> Memory:
        if self._memory is None or self._memory[0] is not plan or self._memory[1] != start.index:
            one = replace(batch, ids=batch.ids[:1], mask=batch.mask[:1], sites=cast(Tensor, batch.sites)[:1])
            with self.subject.edited(plan.on(self.subject, one)):
                self._memory = plan, start.index, self.subject.encode(start.batch)
            self.forwards += 1
        return self._memory[2]

    def beginning(self, start: Start, prefix: str) -> list[int]:
        """What is gone on with: the start, or the token that a decoder starts from; then the tokens of `prefix`."""
        first = [*start.ids] if self.subject.objective == "causal" else [start_of(self.subject)]
        if not prefix:
            return first
        batch = self.subject.tokenize([prefix])
        return [*first, *batch.ids[0][~self.subject.special(batch.ids[0])].tolist()]

    def allowed(self, logits: Tensor, *, may_end: bool = False) -> Tensor:
        """`[..., vocabulary]` with −inf at what must not be written."""
        barred = self.barred.to(logits.device, copy=True)
        if may_end and self.end is not None:
            barred[self.end] = False
        width = logits.shape[-1]  # a head may have more rows than the vocabulary has words
        barred = torch.nn.functional.pad(barred[:width], (0, max(0, width - len(barred))), value=True)
        return logits.masked_fill(barred, -torch.inf)

    def drawn(self, logits: Tensor, randoms: Sequence[Random]) -> list[int]:
        """One of every row of `logits [n, vocabulary]`, by temperature and top-p; drawn on the CPU, so that devices
        agree."""
        cumulated = self.decoder.sampling.probabilities(logits.double().cpu()).cumsum(-1)
        at = torch.tensor([random.random() for random in randoms], dtype=torch.float64)[:, None]
        return (cumulated <= at * cumulated[:, -1:]).sum(-1).tolist()

    def text(self, ids: Sequence[int]) -> str:
        return self.subject.tokenizer.decode(list(ids), skip_special_tokens=True).replace(" ", "")  # pyright: ignore

    def check(self, text: str) -> str | None:
        """Why the parser of the domain does not take `text`; None: it does."""
        if text not in self.seen:
            try:
                self.domain.check(text)
                self.seen[text] = None
            except InputError as error:
                self.seen[text] = str(error)
        return self.seen[text]

    def design(
        self, start: Start, ids: Sequence[int], round: int, score: float | None = None, ended: bool = True
    ) -> Design:
        text = self.text(ids)
        return Design(start.index, text, self.check(text), round, score, ended)

    def _parts(self, rows: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
        size = max(1, BATCH_TOKENS // max(len(row) for row in rows))
        return (rows[i : i + size] for i in range(0, len(rows), size))
