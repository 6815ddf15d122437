"""Scores of the tokens of one input: ours, what is measured, and what others use.

All are `[tokens]` float64. A signed score is in the target's unit: what the token adds to the target. `mass` and
`attention_rollout` are shares ≥ 0.

- `mass`, `signed_effect`: of the attribution graph, see `attribution.units.unit_scores`
- `hidden`: fall of the target when the token is masked
- `refilled`: fall of the target, averaged over what the subject would write there (input marginalisation, Kim et al.
  2020), the `REFILLS` most probable tokens weighted by their probability
- `shapley`: mean fall when the token is masked in a random order of masking all of them (permutation sampling, Castro
  et al. 2009), each order used forwards and backwards
- `gradient_x_input`: ∂M/∂e · e, e the token's embedding (Shrikumar et al. 2016)
- `integrated_gradients`: from the input with every token masked (Sundararajan et al. 2017), `STEPS` steps
- `attention_rollout`: Abnar & Zuidema 2020, mean over heads, averaged over the tokens that are pooled
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.attribution.circuits.choice import choose_circuit
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.influence import prune, prune_to_circuit, total_effects
from isotrace.attribution.trace import TraceConfig
from isotrace.attribution.units import over_elements, unit_scores, with_ids
from isotrace.base.errors import SubjectError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.domains.molecule import TokenUnit, token_map
from isotrace.domains.molecule.spelling import Spelling
from isotrace.subjects.dispatch import forwards_replaced, patterns_recorded
from isotrace.subjects.probe import pooling_weights
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target

REFILLS = 3
STEPS = 16
ORDERS = 2


@dataclass(frozen=True)
class Case:
    """One spelling of a molecule, read for one target."""

    subject: Subject
    dictionary: Dictionary
    target: Target
    batch: Batch
    units: tuple[TokenUnit, ...]
    seed: int

    @property
    def places(self) -> list[int]:
        """Positions of the tokens that are no special ones."""
        return [p for p, unit in enumerate(self.units) if unit.kind != "special"]

    @property
    def elements(self) -> list[tuple[int, ...]]:
        """See `Reading.elements`."""
        return [unit.atoms if unit.kind == "atom" else () for unit in self.units]

    @property
    def mask(self) -> int:
        """Raises SubjectError for a subject without a mask token."""
        if self.subject.mask_id is None:
            raise SubjectError(f"{self.subject.source} has no mask token: give a subject that has one.")
        return self.subject.mask_id

    def values(self, ids: Tensor) -> np.ndarray:
        return with_ids(self.subject, self.batch, self.target, ids).numpy()


def case_of(subject: Subject, dictionary: Dictionary, target: Target, smiles: str, seed: int) -> Case:
    batch = subject.tokenize([smiles])
    units = token_map(smiles, subject.tokens(batch.ids[0]), batch.offsets[0])
    return Case(subject, dictionary, target, batch, units, seed)


def of_graph(case: Case, masses: bool = True) -> dict[str, np.ndarray]:
    """`signed_effect`, and `mass`, for which a circuit has to be chosen."""
    config = TraceConfig()
    framed = frame(case.subject, case.dictionary, case.batch, case.target)
    graph = build_graph(framed, max_features=config.spelling_features)
    pruned = prune(graph, config.node_threshold, config.edge_threshold)
    if masses:
        given = {"shares": config.sizes, "tolerance": config.tolerance, "ablation": config.ablation}
        choice = choose_circuit(case.subject, framed, case.target, graph.feature_nodes, **given)
        pruned = prune_to_circuit(graph, choice.circuit, config.node_threshold, config.edge_threshold)
    found = unit_scores(graph, pruned, total_effects(graph), case.elements)
    return {"signed_effect": found.signed.numpy()} | ({"mass": found.positions.numpy()} if masses else {})


def hidden(case: Case) -> np.ndarray:
    ids, places = case.batch.ids.repeat(1 + len(case.places), 1), case.places
    ids[range(1, len(ids)), places] = case.mask
    values = case.values(ids)
    return _at(case, places, values[0] - values[1:])


def refilled(case: Case) -> np.ndarray:
    subject, places = case.subject, case.places
    masked = case.batch.ids.repeat(len(places), 1)
    masked[range(len(places)), places] = case.mask
    with torch.no_grad():
        final = subject.hidden(masked, case.batch.mask.expand(len(places), -1))
        logits = subject.head(final[range(len(places)), places])
    logits[:, subject.is_special] = -torch.inf
    chances, tokens = logits.softmax(-1).topk(REFILLS)
    ids = case.batch.ids.repeat(len(places) * REFILLS, 1)
    ids[range(len(ids)), np.repeat(places, REFILLS)] = tokens.flatten()
    values = case.values(ids).reshape(len(places), REFILLS)
    weights = (chances / chances.sum(1, keepdim=True)).double().numpy()
    return _at(case, places, case.values(case.batch.ids)[0] - (weights * values).sum(1))


def shapley(case: Case) -> np.ndarray:
    rng, places = np.random.default_rng(case.seed), np.asarray(case.places)
    drawn = [rng.permutation(places) for _ in range(ORDERS)]
    orders = [*drawn, *(order[::-1] for order in drawn)]
    ids = case.batch.ids.repeat(len(orders) * (1 + len(places)), 1)
    for n, order in enumerate(orders):
        for step, place in enumerate(order, 1):
            ids[n * (1 + len(places)) + step : (n + 1) * (1 + len(places)), place] = case.mask
    falls = np.zeros(len(case.units))
    for order, values in zip(orders, case.values(ids).reshape(len(orders), -1), strict=True):
        falls[order] -= np.diff(values)
    return falls / len(orders)


def gradient_x_input(case: Case) -> np.ndarray:
    """At the input itself."""
    here = embedded(case.subject, case.batch.ids)
    return (slopes(case.subject, case.batch, here[None], _value(case))[0] * here).sum(-1).double().numpy()


def integrated_gradients(case: Case) -> np.ndarray:
    empty = case.batch.ids.clone()
    empty[0, case.places] = case.mask
    return path_integral(case.subject, case.batch, empty, _value(case)).double().numpy()


def path_integral(subject: Subject, batch: Batch, empty: Tensor, value: Callable[[Batch], Tensor]) -> Tensor:
    """Integrated gradients `[tokens]` of `value`, `[rows]` of a batch, from the ids `empty [1, tokens]`."""
    start, end = embedded(subject, empty), embedded(subject, batch.ids)
    steps = (torch.arange(STEPS)[:, None, None] + 0.5) / STEPS
    return ((end - start) * slopes(subject, batch, start + steps * (end - start), value).mean(0)).sum(-1)


def attention_rollout(case: Case) -> np.ndarray:
    with torch.no_grad(), patterns_recorded(case.subject) as patterns:
        case.subject.hidden(case.batch.ids, case.batch.mask)
    flow = rollout([patterns[module][0] for module in case.subject.attentions])
    return (pooling_weights(case.subject, case.batch)[0] @ flow).double().numpy()


def rollout(patterns: Sequence[Tensor]) -> Tensor:
    """`[query, key]`, of `[heads, query, key]` of every layer; half of what a token hands on is its own."""
    own = torch.eye(patterns[0].shape[-1])
    flow = own
    for pattern in patterns:
        flow = 0.5 * (pattern.mean(0) + own) @ flow
    return flow


def random(case: Case) -> np.ndarray:
    return np.random.default_rng((case.seed, len(case.units))).standard_normal(len(case.units))


MEASURED: dict[str, Callable[[Case], np.ndarray]] = {
    f.__name__: f
    for f in (hidden, refilled, shapley, gradient_x_input, integrated_gradients, attention_rollout, random)
}
METHODS = ("mass", "signed_effect", *MEASURED)
CHEAP = ("signed_effect", "hidden", "gradient_x_input", "integrated_gradients", "random")
"""Those that are also averaged over spellings."""


def atom_scores(case: Case, spelling: Spelling, methods: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores of the tokens, summed over those of each atom, `[atoms]` in the order of the molecule; what stands on
    other tokens stays there."""
    values = of_graph(case, "mass" in methods) | {name: MEASURED[name](case) for name in methods if name in MEASURED}
    found = {name: np.zeros(len(spelling.original)) for name in methods}
    for name, atoms in found.items():
        for written, value in over_elements(case.elements, torch.from_numpy(values[name])).items():
            atoms[spelling.original[written]] = value
    return found


def _at(case: Case, places: Sequence[int], values: np.ndarray) -> np.ndarray:
    found = np.zeros(len(case.units))
    found[list(places)] = values
    return found


def _value(case: Case) -> Callable[[Batch], Tensor]:
    return lambda batch: case.target.value(case.subject, batch, case.target.hidden(case.subject, batch))


def embedded(subject: Subject, ids: Tensor) -> Tensor:
    """Word embeddings `[tokens, d]` of one row."""
    with torch.no_grad():
        return subject.embeddings[0].module(ids)[0]


def slopes(subject: Subject, batch: Batch, points: Tensor, value: Callable[[Batch], Tensor]) -> Tensor:
    """Gradient of `value` at each of the embeddings `points [n, tokens, d]` of one row."""
    leaf = points.detach().clone().requires_grad_(True)
    rows = Batch(batch.ids.expand(len(leaf), -1), batch.mask.expand(len(leaf), -1), (), ())
    with torch.enable_grad(), forwards_replaced({subject.embeddings[0].module: lambda *_, **__: leaf}):
        found = value(rows)
    return torch.autograd.grad(found.sum(), leaf)[0]
