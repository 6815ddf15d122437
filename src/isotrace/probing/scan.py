"""What a subject says of the variants of one sequence, beside what was measured and beside simpler predictions.

1. predict  Σ over the mutated sites of log p(after) − log p(before) with all of them masked (masked marginals: Meier et
            al. 2021, NeurIPS 34); one pass serves all variants of the same sites. A causal subject, which fills no
            masks: log-likelihood of the variant less that of the wild type, over whole sequences
2. beside   an untrained copy, likewise; BLOSUM62, added up; the mean of what was measured of the other variants at the
            same sites, which a subject has not seen
3. compare  Spearman with the measured effects. Intervals and differences come from draws of sites: variants of one site
            are alike, and a variant of several sites counts the product of how often they are drawn (pigeonhole
            bootstrap: Owen 2007, Annals of Applied Statistics 1, 386)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from isotrace.annotation.nulls.sources import untrained_subject
from isotrace.base.errors import InputError
from isotrace.base.progress import Progress, silent
from isotrace.base.settings import checked_seed
from isotrace.datasets.mutations import Design, Scan
from isotrace.domains.domain import Domain
from isotrace.domains.mutations import Mutation, mutated
from isotrace.domains.substitutions import BLOSUM62, RESIDUES
from isotrace.stats.bootstrap import bootstrap_weights
from isotrace.stats.metrics import spearman
from isotrace.subjects.heads.likelihoods import masked_copies, read_tokens
from isotrace.subjects.heads.mutations import swaps, token_of_letter
from isotrace.subjects.subject import Batch, Subject

BATCH_TOKENS = 4_096
DRAWN = 1 << 22
"""Weights of draws that are held at once."""
LEAST = 20
"""Fewer variants allow no statement."""


@dataclass(frozen=True)
class ScanSettings:
    """`worse`: which measured values are those of a worse variant; what is compared rises with the better ones."""

    worse: str = "low"
    n_bootstrap: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        checked_seed(self.seed)


@dataclass(frozen=True, eq=False)
class Scanned:
    """`predicted[source] [variants]`, higher for what is thought better. `every [sites, 20]`: the log-odds of each of
    RESIDUES against the residue that stands there, all sites of the wild type; None for a causal subject. `scores`:
    (which variants, source) → Spearman `[1 + n_bootstrap]`, the first of all as they are.
    `of_designs[source] [designs]`: as `predicted`."""

    scan: Scan
    settings: ScanSettings
    method: str
    predicted: dict[str, np.ndarray]
    every: np.ndarray | None
    scores: dict[str, dict[str, np.ndarray]]
    designs: tuple[Design, ...] = ()
    of_designs: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def measured(self) -> np.ndarray:
        return np.asarray([variant.effect for variant in self.scan.variants])


def scan_variants(
    subject: Subject, domain: Domain, scan: Scan, settings: ScanSettings, progress: Progress = silent,
    designs: Sequence[Design] = (),
) -> Scanned:  # fmt: skip
    """Raises InputError for fewer than LEAST variants, effects that are all alike, and a wild type that the subject
    cannot take; SubjectError for a subject without a head or a mask token."""
    effects = np.asarray([variant.effect for variant in scan.variants])
    if len(effects) < LEAST or len(np.unique(effects)) < 2:
        raise InputError(
            f"{len(effects)} variants with {len(np.unique(effects))} different effects are too few for a scan: give at "
            f"least {LEAST}, and two that differ."
        )
    subject.reading_position(1)
    ways = {"subject": subject, "untrained": untrained_subject(subject, settings.seed)}
    predicted: dict[str, np.ndarray] = {}
    every = None
    n, changes = len(scan.variants), [one.changes for one in (*scan.variants, *designs)]
    for name, one in ways.items():
        if subject.predicts_next:
            predicted[name] = likelihoods(one, scan.wild_type, changes, progress)
        else:
            marginals = Marginals(one, domain, scan.wild_type, changes, progress)
            predicted[name] = marginals.of_variants()
            every = marginals.of_every_residue() if every is None else every
    predicted["blosum62"] = np.asarray([sum(BLOSUM62[c.before, c.after] for c in of) for of in changes], dtype=float)
    of_designs = {name: values[n:] for name, values in predicted.items()}
    predicted = {name: values[:n] for name, values in predicted.items()}
    better = effects if settings.worse == "low" else -effects
    sites = [variant.sites for variant in scan.variants]
    predicted["site_mean"] = site_means(better, sites)
    sizes = np.asarray([len(at) for at in sites])
    subsets = {"all": np.ones(len(sizes), dtype=bool)}
    if len(set(sizes)) > 1:
        subsets |= {f"{size} mutation{'s' if size > 1 else ''}": sizes == size for size in sorted({*sizes.tolist()})}
    scores = {
        name: spearmans(predicted, better, sites, chosen, settings)
        for name, chosen in progress([*subsets.items()], "comparing")
    }
    method = "log-likelihoods of whole sequences" if subject.predicts_next else "masked marginals"
    return Scanned(scan, settings, method, predicted, every, scores, tuple(designs), of_designs)


class Marginals:
    """Log-odds of residues at the masked sites of every set of sites that one of `variants` changes, and at every
    single site."""

    def __init__(
        self, subject: Subject, domain: Domain, wild_type: str, variants: Sequence[tuple[Mutation, ...]],
        progress: Progress = silent,
    ) -> None:  # fmt: skip
        self.wild_type, self.variants = wild_type, variants
        batch = subject.tokenize([wild_type])
        ids = batch.ids[0].cpu().numpy()
        reading = domain.read(wild_type, subject.tokens(batch.ids[0]), batch.offsets[0])
        asked = sorted({one for changes in variants for one in changes}, key=lambda one: one.site)
        place = {one.site: swaps(subject, ids, reading, [one])[0][0] for one in asked}
        place |= {
            element + 1: token for token, part in enumerate(reading.elements) if len(part) == 1 for element in part
        }
        self.sets = [*dict.fromkeys([(site,) for site in sorted(place)] + [tuple(c.site for c in v) for v in variants])]
        letters = torch.tensor([token_of_letter(subject, letter) for letter in RESIDUES], device=batch.ids.device)
        self.logits: dict[tuple[int, ...], np.ndarray] = {}
        at_once = max(1, BATCH_TOKENS // len(ids))
        parts = [self.sets[i : i + at_once] for i in range(0, len(self.sets), at_once)]
        for part in progress(parts, "predicting"):
            for sites, found in zip(part, self._read(subject, batch, part, place, letters), strict=True):
                self.logits[sites] = found

    @torch.no_grad()
    def _read(
        self,
        subject: Subject,
        batch: Batch,
        sets: Sequence[tuple[int, ...]],
        place: dict[int, int],
        letters: torch.Tensor,
    ) -> list[np.ndarray]:
        """Logits `[sites of the set, 20]` of each of `sets`."""
        rows = masked_copies(subject, batch, [[place[site] for site in sites] for sites in sets])
        hidden = subject.hidden(rows.ids, rows.mask)
        places = [[subject.reading_position(place[site]) for site in sites] for sites in sets]
        return [subject.head(hidden[i, at])[:, letters].double().cpu().numpy() for i, at in enumerate(places)]

    def of_variants(self) -> np.ndarray:
        """Σ log p(after) − log p(before), float64 `[variants]`."""
        found = []
        for changes in self.variants:
            logits = self.logits[tuple(one.site for one in changes)]
            found.append(
                sum(
                    row[RESIDUES.index(c.after)] - row[RESIDUES.index(c.before)]
                    for row, c in zip(logits, changes, strict=True)
                )
            )
        return np.asarray(found)

    def of_every_residue(self) -> np.ndarray:
        """float64 `[sites, 20]`; NaN where the wild type has none of the twenty, or its token writes several."""
        found = np.full((len(self.wild_type), len(RESIDUES)), np.nan)
        for site, letter in enumerate(self.wild_type, start=1):
            if (site,) in self.logits and letter in RESIDUES:
                row = self.logits[site,][0]
                found[site - 1] = row - row[RESIDUES.index(letter)]
        return found


@torch.no_grad()
def likelihoods(
    subject: Subject, wild_type: str, variants: Sequence[tuple[Mutation, ...]], progress: Progress = silent
) -> np.ndarray:
    """log p(variant) − log p(wild type) of a causal subject, of all tokens that are no special ones, float64
    `[variants]`."""
    texts = [wild_type, *(mutated(wild_type, changes) for changes in variants)]
    at_once = max(1, BATCH_TOKENS // len(wild_type))
    found = []
    for part in progress([texts[i : i + at_once] for i in range(0, len(texts), at_once)], "predicting"):
        batch = subject.tokenize(part)
        own, predicted = read_tokens(subject, batch, subject.head(subject.hidden(batch.ids, batch.mask)))
        real = predicted & ~subject.special(batch.ids)
        found += (own * real).sum(1).tolist()
    return np.asarray(found[1:]) - found[0]


def site_means(effects: np.ndarray, sites: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Of every variant the mean over its sites of the mean effect of the other variants that change this site; where
    there is none, of all others."""
    totals: dict[int, list[float]] = {}
    for effect, at in zip(effects, sites, strict=True):
        for site in at:
            totals.setdefault(site, []).append(float(effect))
    sums = {site: (sum(values), len(values)) for site, values in totals.items()}
    found = []
    for effect, at in zip(effects, sites, strict=True):
        others = [(sums[s][0] - effect) / (sums[s][1] - 1) for s in at if sums[s][1] > 1]
        found.append(np.mean(others) if others else (effects.sum() - effect) / (len(effects) - 1))
    return np.asarray(found, dtype=float)


def spearmans(
    predicted: dict[str, np.ndarray], effects: np.ndarray, sites: Sequence[tuple[int, ...]], chosen: np.ndarray,
    settings: ScanSettings,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Of the `chosen` variants, source → `[1 + n_bootstrap]`: as they are, then of draws of sites, the same for all
    sources; NaN where a draw leaves nothing to rank."""
    rows = np.flatnonzero(chosen).tolist()
    sets = [*dict.fromkeys(sites[row] for row in rows)]
    names = sorted({site for at in sets for site in at})
    own = [[names.index(site) for site in at] for at in sets]
    place = {at: i for i, at in enumerate(sets)}
    of_row = np.asarray([place[sites[row]] for row in rows])
    drawn = bootstrap_weights(len(names), settings.n_bootstrap, (settings.seed, 5))
    # of a few sites, as in a library of four, most draws are the same
    drawn, which = np.unique(np.concatenate([np.ones((1, len(names))), drawn]), axis=0, return_inverse=True)
    found: dict[str, list[np.ndarray]] = {source: [] for source in predicted}
    for part in np.array_split(drawn, max(1, drawn.shape[0] * len(rows) // DRAWN)):
        weights = np.stack([part[:, at].prod(1) for at in own], 1)[:, of_row]
        for source, values in predicted.items():
            found[source].append(spearman(values[rows, None], effects[rows], weights))
    return {source: np.concatenate(parts)[which] for source, parts in found.items()}
