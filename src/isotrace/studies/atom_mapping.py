"""Reactions as `head_screening` uses them: tasks of masked product atoms, and how well attention follows atom maps.

RXNMapper (Schwaller et al. 2021, Science Advances 7, eabe4166) is an ALBERT trained on masked tokens of reactions. The
package reads atom maps from one of its heads: head 5 of layer 10, both counted from 0 (defaults of `RXNMapper`'s
configuration, version 0.4.3). It adds the attention of both directions, keeps pairs of one element, and maps one atom
after the other, the neighbours of mapped atoms weighted 90-fold. Here plain argmax is taken, which tells what the head
itself knows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from isotrace.base.errors import InputError
from isotrace.discovery.methods import Metric
from isotrace.domains.reaction.mapping import changes, mapping
from isotrace.domains.reaction.tokens import parse_reaction, reaction_units
from isotrace.stats.bootstrap import bootstrap_weights, intervals
from isotrace.subjects.dispatch import patterns_recorded
from isotrace.subjects.subject import Batch, Subject

SOURCE = "pypi:rxnmapper/albert_heads_8_uspto_all_1310k"
NAMED = (10, 5)
"""(layer, head), from 0, that the package reads atom maps from."""
Task = Literal["one", "neighbours", "copied", "all"]
TASKS: dict[Task, str] = {
    "one": "one product atom is masked",
    "neighbours": "a product atom and the atoms bonded to it are masked, and the atom is predicted",
    "copied": "one product atom is masked whose token is no plain carbon and stands once among the precursors",
    "all": "all product atoms are masked, and their mean is taken",
}
MetricKind = Literal["logit", "log-probability"]


@dataclass(frozen=True)
class Case:
    """One reaction. `batch [1, tokens]`; places are token positions: `product`, `precursors` of atoms; `partner`: from
    the place of a product atom to that of the precursor atom it comes from; `bonded`: product atoms bonded to it;
    `molecule`: the component of every precursor atom."""

    batch: Batch
    product: tuple[int, ...]
    precursors: tuple[int, ...]
    partner: dict[int, int]
    bonded: dict[int, tuple[int, ...]]
    molecule: dict[int, int]

    @property
    def n_tokens(self) -> int:
        return self.batch.ids.shape[1]


@dataclass(frozen=True)
class Masked:
    """A case with `places` hidden; the tokens at `asked` are to be predicted. `batch [1, tokens]` is masked."""

    case: Case
    batch: Batch
    asked: tuple[int, ...]

    def truth(self) -> torch.Tensor:
        return self.case.batch.ids[0, list(self.asked)]

    def metric(self, subject: Subject, kind: MetricKind) -> Metric:
        """Mean over the tokens asked for: the true token's logit minus the mean logit, or its log-probability."""
        asked, truth = list(self.asked), self.truth()

        def measure(batch: Batch, final: torch.Tensor) -> torch.Tensor:
            logits = subject.head(final[:, asked])
            if kind == "log-probability":
                logits = logits.log_softmax(-1)
            true = logits.gather(-1, truth.expand(len(logits), -1)[..., None])[..., 0]
            return (true - logits.mean(-1) if kind == "logit" else true).mean(-1)

        return measure


def read_cases(subject: Subject, rows: Iterable[tuple[str, str]], *, max_tokens: int, n: int) -> tuple[list[Case], int]:
    """Up to `n` cases of (reaction, its mapped copy), and how many rows were left out: longer than `max_tokens`, not
    readable by the subject, or with no map between the sides."""
    cases, dropped = [], 0
    for text, mapped in rows:
        if len(cases) == n:
            break
        try:
            batch = subject.tokenize([text])
            if batch.ids.shape[1] > max_tokens:
                raise InputError(f"{text!r} has more than {max_tokens} tokens.")
            cases.append(_case(subject, text, mapped, batch))
        except InputError:
            dropped += 1
    return cases, dropped


def _case(subject: Subject, text: str, mapped: str, batch: Batch) -> Case:
    reaction = parse_reaction(text)
    units = reaction_units(text, reaction, subject.tokens(batch.ids[0]), batch.offsets[0])
    place = {unit.atoms[0]: i for i, unit in enumerate(units) if unit.kind == "atom"}
    partner = changes(reaction, mapping(reaction, mapped)).partner
    product = reaction.atoms("product")
    neighbours = {a: [b.GetIdx() for b in reaction.mol.GetAtomWithIdx(a).GetNeighbors()] for a in product}
    return Case(
        batch,
        tuple(place[a] for a in product),
        tuple(place[a] for a in (*reaction.atoms("reactant"), *reaction.atoms("reagent"))),
        {place[a]: place[partner[a]] for a in product if a in partner},
        {place[a]: tuple(place[b] for b in neighbours[a]) for a in product},
        {place[a]: i for i, part in enumerate(reaction.components) if reaction.sides[i] != "product" for a in part},
    )


def masked(subject: Subject, case: Case, task: Task, rng: np.random.Generator) -> Masked | None:
    """The case as the task has it; None where it has no such atom. Atom maps have no say in it."""
    candidates = list(case.product)
    ids, carbon = case.batch.ids[0].tolist(), {subject.token_id("C"), subject.token_id("c")}
    if task == "copied":
        before = [ids[i] for i in case.precursors]
        candidates = [i for i in candidates if ids[i] not in carbon and before.count(ids[i]) == 1]
    if not candidates:
        return None
    assert subject.mask_id is not None
    chosen = int(rng.choice(candidates))
    asked = tuple(candidates) if task == "all" else (chosen,)
    hidden = case.product if task == "all" else (chosen, *(case.bonded[chosen] if task == "neighbours" else ()))
    found = case.batch.ids.clone()
    found[0, list(hidden)] = subject.mask_id
    return Masked(case, case.batch.with_ids(found), asked)


MAPS = ("reference", "shuffled", "shuffled within a token")
"""What attention is compared with: atom maps; the partners of a reaction's atoms permuted; permuted among atoms of one
token, which leaves what can be told without knowing which atom it is."""
DIRECTIONS = ("product to precursors", "both directions")


@dataclass(frozen=True)
class Agreement:
    """How often the precursor atom a product atom attends to most, among all precursor atoms, is the one it comes from.

    `hits [MAPS, inputs, DIRECTIONS, layers, heads]` and `atoms [inputs]` count product atoms. Of atoms that symmetry
    makes equal only the one the map names counts, so shares are lower bounds.
    """

    hits: np.ndarray
    atoms: np.ndarray

    def share(self) -> np.ndarray:
        """`[MAPS, DIRECTIONS, layers, heads]`, of all atoms."""
        return self.hits.sum(1) / self.atoms.sum()

    def interval(self, seed: int, n_draws: int = 1_000) -> np.ndarray:
        """Of `share`: `[2, …]`, 95 % bootstrap over reactions."""
        n = len(self.atoms)
        weights = bootstrap_weights(n, n_draws, seed)
        draws = np.einsum("di,mi...->dm...", weights, self.hits, optimize=True)
        total = (weights @ self.atoms).reshape(-1, *[1] * (draws.ndim - 1))
        return intervals(draws / total)


@torch.no_grad()
def agreement(subject: Subject, inputs: Iterable[Masked], seed: int) -> Agreement:
    """Of the attention that those atoms asked for that have a partner pay and get in each input, masked as it is."""
    rng, hits, atoms = np.random.default_rng(seed), [], []
    for item in inputs:
        asked, before = [place for place in item.asked if place in item.case.partner], list(item.case.precursors)
        if not asked:
            continue
        with patterns_recorded(subject) as patterns:
            subject.hidden(item.batch.ids, item.batch.mask)
        attention = torch.stack([patterns[module][0] for module in subject.attentions])
        there, back = attention[:, :, asked][..., before], attention[:, :, before][..., asked].transpose(2, 3)
        most = torch.tensor(before)[torch.stack([there, there + back]).argmax(-1)]
        maps = torch.tensor([[m[place] for place in asked] for m in _maps(item.case, rng)])
        hits.append((most[None] == maps[:, None, None, None]).sum(-1).numpy())
        atoms.append(len(asked))
    return Agreement(np.stack(hits, 1), np.array(atoms))


def _maps(case: Case, rng: np.random.Generator) -> list[dict[int, int]]:
    """One per entry of MAPS."""
    places = sorted(case.partner)
    partners = [case.partner[place] for place in places]
    tokens = case.batch.ids[0, places].numpy()
    within = np.arange(len(places))
    for token in np.unique(tokens):
        same = np.flatnonzero(tokens == token)
        within[same] = rng.permutation(same)
    orders = (np.arange(len(places)), rng.permutation(len(places)), within)
    return [{place: partners[i] for place, i in zip(places, order, strict=True)} for order in orders]


def unmasked(case: Case) -> Masked:
    """Nothing hidden, all product atoms with a partner asked for."""
    return Masked(case, case.batch, tuple(sorted(case.partner)))


def patent_maps(folder: Path) -> list[tuple[str, str]]:
    """(reaction, the data set's own atom maps) of `reactions/uspto50k_test_patent_mapped.csv` (columns `reactants`,
    `product`, `mapped_rxn`) in a data folder. Raises InputError where it is missing."""
    file = folder / "reactions" / "uspto50k_test_patent_mapped.csv"
    if not file.is_file():
        raise InputError(f"{file} is missing: set ISOTRACE_DATA to a folder that has it, or unset it.")
    table = pl.read_csv(file, infer_schema=False)
    return [(f"{a}>>{b}", mapped) for a, b, mapped in table.select("reactants", "product", "mapped_rxn").iter_rows()]


def agreement_rows(name: str, found: Agreement, seed: int) -> list[dict[str, Any]]:
    """One row per direction and kind of map: the named head beside the others."""
    share, interval, rows = found.share(), found.interval(seed), []
    for d, direction in enumerate(DIRECTIONS):
        for m, maps in enumerate(MAPS):
            values = share[m, d]
            others = values.copy()
            others[NAMED] = -1.0
            best = np.unravel_index(others.argmax(), others.shape)
            rest = np.delete(values, NAMED[1], axis=1)
            rows.append({
                "reference": name, "attention": direction, "maps": maps,
                "reactions": len(found.atoms), "atoms": int(found.atoms.sum()),
                "named": float(values[NAMED]), "named_ci": tuple(interval[:, m, d, *NAMED].tolist()),
                "named_rank": int((values > values[NAMED]).sum()) + 1,
                "best_other": f"{best[0]}.{best[1]}", "best_other_share": float(values[best]),
                "best_of_other_indices": float(rest.max()), "median_head": float(np.median(values)),
            })  # fmt: skip
    return rows
