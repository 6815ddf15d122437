"""Does an edit steer along a path that the subject takes by itself, or along one that lies dormant? (Makelov, Lange and
Nanda 2023; see `discovery.illusion`, which asks it of a direction that is patched)

A direction can move predictions although the subject never uses it: a part of it that nothing reads stands higher in
the wanted inputs, and a part that the data never move, or never so far, reaches the output.

1. edit      what the edit adds at its hookpoint, v̂ and how far; and what that does to predictions, by which a single
             number is read: the logits, centred, along their mean change, at hidden tokens (masked) or all. Logits and
             not probabilities, which bend where nothing lies dormant
2. data      between two inputs of one length, one of either side: the part of v̂ that is read behind the hookpoint is
             taken from the other input
3. live      effect of the data per unit that they move along v̂ / effect of the edit per unit that it adds. 1 = the edit
             does what the data do, 0 = dormant
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError, SubjectError
from isotrace.discovery.illusion import HALF, Estimate
from isotrace.discovery.readers import row_space
from isotrace.interventions import Hookpoints, Intervention, Plan, Subspaces, To, Tokens
from isotrace.interventions.hookpoints import AtHookpoint
from isotrace.interventions.writers import Writers
from isotrace.stats.bootstrap import bootstrap_weights, interval
from isotrace.stats.share import share
from isotrace.steering.contrast import Contrast
from isotrace.steering.edits import Edits
from isotrace.steering.kinds import Edit
from isotrace.subjects.subject import Batch, Subject

LEAST = 0.01
"""Nats: an edit that moves predictions by less has no path that could be dormant."""
HIDDEN = 0.15
"""Share of tokens that are masked and read."""
ROWS, DRAWS = 16, 1_000
READ_BY_SOME = ("neuron", "head_out", "mlp_in")
"""Hookpoints that a few maps read. The final hidden state has all that is in the stream, so all of that is read."""


@dataclass(frozen=True)
class Dormancy:
    """Of one edit, at strength `alpha`, at the hookpoint `site`. `read_share`: of v̂ in what is read behind it, ‖R v̂‖²;
    `kl`: nats at the tokens read; `reach`: how far it moves along v̂, in root mean squares of what the data do between
    two inputs, infinite where they do not move. `live` as in the module, with its 95 % interval over `n_pairs` pairs;
    NaN where the edit moves nothing, and where the data do not.

    `flagged`: it moves predictions (`kl` ≥ LEAST), and the whole interval of `live` is below a half, or the data never
    move along it."""

    layer: int
    site: str
    alpha: float
    read_share: float
    kl: float
    reach: float
    live: Estimate
    n_pairs: int

    @property
    def flagged(self) -> bool:
        return self.kl >= LEAST and (self.live[2] < HALF or self.reach == np.inf)


def dormancy(
    subject: Subject, edits: Edits, contrast: Contrast, *, alpha: float | None = None, n_pairs: int = 64, seed: int = 0
) -> list[Dormancy]:
    """A row for every edit, each alone, at `alpha`, by default the calibrated one, over at most `n_pairs` pairs of a
    positive and a negative sequence of `contrast` that are equally long.

    Raises InputError for fewer than three such pairs, no strength, and edits of what has no hookpoint; SubjectError for
    a subject without a head and for an encoder–decoder, whose two sequences differ in length."""
    if not subject.has_head or len(subject.stack_sizes) > 1:
        raise SubjectError(f"{subject.source} has no head, or two stacks: this check is of one stack that predicts.")
    if alpha is None:
        if edits.dose is None:
            raise InputError("these edits have no dose yet: give alpha, or calibrate them.")
        alpha = edits.dose.alpha
    pairs = _paired(subject, contrast, n_pairs, seed)
    return [_of(subject, edit, alpha, pairs, seed) for edit in edits.edits]


Pair = tuple[Batch, Batch]
"""Negative and positive sequences, row by row of one length, some tokens of both hidden; `sites`: where it is read."""


def _of(subject: Subject, edit: Edit, alpha: float, pairs: Sequence[Pair], seed: int) -> Dormancy:
    site, plan = site_of(subject, edit), edit.plan(alpha)
    moved = [_at(subject, site, own, plan) - _at(subject, site, own) for own, _ in pairs]
    tokens = [_edited(subject, own, edit.where) for own, _ in pairs]
    added = torch.cat([x[at] for x, at in zip(moved, tokens, strict=True)]).mean(0)
    length = float(added.norm())
    if not length:
        raise InputError(f"the edit of {site} adds nothing at α = {alpha:g}: there is no direction to follow.")
    v = (added / length)[:, None].float()
    read = v
    if site.rpartition(".")[2] in READ_BY_SOME:
        space = row_space(subject, site).to(v)
        read = space @ (space.T @ v)
    read_share = float(read.square().sum())
    plain, under = ([_said(subject, own, how) for own, _ in pairs] for how in (Plan(), plan))
    before, after = (torch.cat(x).log_softmax(-1) for x in (plain, under))
    kl = float((before.exp() * (before - after)).sum(-1).mean())
    change = torch.cat(under).mean(0) - torch.cat(plain).mean(0)
    change /= change.norm().clamp(min=1e-30)
    axis = read / read.norm().clamp(min=1e-30)
    parts = Subspaces({site: axis})
    by_edit, by_data = [], []
    far = [_means(x @ v[:, 0].double(), at) for x, at in zip(moved, tokens, strict=True)]
    steps = [
        _means((_at(subject, site, other) - _at(subject, site, own)) @ v[:, 0].double(), at)
        for (own, other), at in zip(pairs, tokens, strict=True)
    ]
    for (own, other), p, q in zip(pairs, plain, under, strict=True):
        patch = Plan()
        if read_share > 1e-8:
            patch = Plan.of(Intervention(parts, To.other(subject, parts, other), edit.where))
        by_edit.append(_by_row((q - p) @ change, own))
        by_data.append(_by_row((_said(subject, own, patch) - p) @ change, own))
    step, way, ours, theirs = (torch.cat(x).cpu().numpy() for x in (steps, far, by_edit, by_data))
    weights = np.concatenate([np.ones((1, len(step))), bootstrap_weights(len(step), DRAWS, (seed, 23))])
    spread = float(np.sqrt((step**2).mean()))
    still = spread < 1e-5 * length
    # slopes through the origin, pair by pair: an edit of no strength and a pair that agrees do nothing
    slopes = [share(weights @ (y * x), weights @ x**2, 0.0) for x, y in ((step, theirs), (way, ours))]
    ratio = share(slopes[0], slopes[1], 0.0)
    live = (np.nan, np.nan, np.nan) if still else (float(ratio[0]), *interval(ratio[1:]))
    reach = np.inf if still else length / spread
    return Dormancy(edit.layer, site, alpha, read_share, kl, reach, live, len(step))


def site_of(subject: Subject, edit: Edit) -> str:
    """The hookpoint where it acts; of features that of what they write. Raises InputError where there is not one."""
    parts = edit.components
    if isinstance(parts, Hookpoints):
        return parts.names[edit.layer]
    if isinstance(parts, AtHookpoint):
        return f"layers.{edit.layer}.{parts.kind}"
    if isinstance(parts, Writers) and parts.name in ("neuron", "feature"):
        sites = parts.reads(subject) if parts.name == "neuron" else parts.writes(subject)
        targets = [edit.layer] if parts.name == "neuron" else parts.targets(edit.layer)
        if len(targets) == 1:
            return sites[targets[0]]
    raise InputError(f"an edit of {parts.name}s acts at no single hookpoint: this check is not for it.")


def _paired(subject: Subject, contrast: Contrast, n: int, seed: int) -> list[Pair]:
    rng, found = np.random.default_rng((seed, 24)), []
    lengths = np.asarray([len(e.ids) for e in contrast.examples])
    for length in np.unique(lengths):
        sides = [rng.permutation(rows[lengths[rows] == length]) for rows in (contrast.negative, contrast.positive)]
        found += zip(*(rows.tolist() for rows in sides), strict=False)
    if len(found) < 3:
        raise InputError(f"{len(found)} pairs of a positive and a negative are equally long: three are needed.")
    chosen = sorted((found[i] for i in rng.permutation(len(found))[:n]), key=lambda pair: lengths[pair[0]])
    return [_batches(subject, contrast, chosen[i : i + ROWS], rng) for i in range(0, len(chosen), ROWS)]


def _batches(subject: Subject, contrast: Contrast, rows: Sequence[tuple[int, int]], rng: np.random.Generator) -> Pair:
    own, other = (subject.tokenize([contrast.examples[row[side]].text for row in rows]) for side in (0, 1))
    free = own.mask & ~subject.special(own.ids) & ~subject.special(other.ids)
    if subject.mask_id is None or subject.objective != "masked":
        return replace(own, sites=free), replace(other, sites=free)
    drawn = torch.from_numpy(rng.random(free.shape)).to(free.device).masked_fill(~free, 2.0)
    hidden = (drawn < HIDDEN) | (drawn == drawn.amin(1, keepdim=True))
    return tuple(  # pyright: ignore[reportReturnType]
        Batch(batch.ids.masked_fill(hidden, subject.mask_id), batch.mask, sites=hidden, sequences=(), offsets=())
        for batch in (own, other)
    )


@torch.no_grad()
def _said(subject: Subject, batch: Batch, plan: Plan) -> Tensor:
    """float64 `[sites, vocabulary]`: centred logits."""
    final = subject.run(batch, plan=plan, logits=False).final
    logits = subject.head(final[batch.sites]).double()
    return logits - logits.mean(-1, keepdim=True)


@torch.no_grad()
def _at(subject: Subject, site: str, batch: Batch, plan: Plan | None = None) -> Tensor:
    """float64 `[batch, tokens, d]`."""
    return subject.run(batch, plan=plan, capture=[site], logits=False).captured[site].double()


def _edited(subject: Subject, batch: Batch, where: Tokens) -> Tensor:
    """`[batch, tokens]` bool."""
    return where.on(subject, batch).tokens  # pyright: ignore[reportAttributeAccessIssue]


def _means(x: Tensor, tokens: Tensor) -> Tensor:
    """`[batch]` of `x [batch, tokens]`."""
    return (x * tokens).sum(1) / tokens.sum(1).clamp(min=1)


def _by_row(x: Tensor, batch: Batch) -> Tensor:
    """`[batch]`: mean of `x [sites]` over the sites of every row."""
    sites = batch.sites
    assert sites is not None  # every pair has some
    rows = sites.nonzero()[:, 0]
    return torch.zeros(len(sites)).double().to(x.device).index_add(0, rows, x) / sites.sum(1)
