"""Sublayer budget: neurons and heads in proportion to what their sublayer can do (emotion circuits, Wang et al. 2025).

Differences are of the positive side less the negative, within groups; v_l is that of the stream behind block l.

1. rank    a neuron by c = Δa (W_out · v̂_l); a head by how far the difference falls, along v̂ of what the next MLP reads,
           when the head is zeroed: a local score, which does not see what later layers make of the head
2. weigh   a sublayer by I = ⟨h′ − h, v̂_ref⟩ / (α σ): what comes out behind the last block for what was added along the
           sublayer's own difference; σ is the usual norm there, v_ref the mean of the late v̂_l, their signs aligned
3. share   neurons are dealt out to MLPs, heads to attentions, in proportion to I where it is above 0
4. edit    each chosen unit gains α times its own difference

c of activations themselves, as published, puts first what is always on; c of differences does not. What a unit does,
beside matched random ones, say the `lifts`.
"""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.interventions import Heads, Intervention, Plan, Residuals, Select, Set
from isotrace.interventions.hookpoints import Hookpoints, Neurons
from isotrace.steering import AddEdit, Edit, FeatureEdit
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions.closed_form.difference_in_means import Form, form_weights
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.states import How, pooled, weighted
from isotrace.subjects.subject import Subject

ALPHAS = (0.1, 0.3, 0.5, 0.7)
LATE = 1 / 3
"""Share of the last stack's layers whose directions make the reference."""
Sublayer = tuple[str, int]
"""(hookpoint it writes to, `attn_out` or `mlp_out`; layer)."""


@dataclass(frozen=True, eq=False)
class Differences:
    """`at[kind, layer]` float64 `[d]`: Σ weights · what flows at a hookpoint; `lengths`: the median norm there;
    `reference` float64 `[d_model]`, unit: where the side is written behind the last block."""

    weights: Tensor
    how: How
    at: dict[tuple[str, int], Tensor]
    lengths: dict[tuple[str, int], float]
    reference: Tensor


@direction(
    "sublayer_budget", labels="binary or terciles", cost="2N F + heads · 2N F + 8 · L · inputs F",
    tuned="neurons, heads, α", components=Neurons, source="Wang et al. 2025 (emotion circuits)",
)  # fmt: skip
def sublayer_budget(
    fitting: Fitting, neurons: int = 20, heads: int = 4, form: Form = "grouped", inputs: int = 16,
    how: How | None = None,
) -> list[Edit]:  # fmt: skip
    """Neurons and heads that write the difference, as many in each sublayer as it has influence on the end

    `neurons`, `heads`: how many in all. Influence is measured in `inputs` negative sequences. `layers` are those whose
    MLP and attention take part. Raises InputError for other components than neurons, for groups without both sides, and
    where the sides do not differ behind the last block."""
    subject, contrast = fitting.subject, fitting.contrast
    if fitting.components != Neurons():
        raise InputError("sublayer_budget edits neurons and heads of all layers: leave out the components.")
    found = differences(subject, contrast, form, how or fitting.usual, fitting)
    scores = neuron_scores(subject, found, fitting.layers) | head_scores(fitting, found)
    influence = influences(fitting, found, inputs)
    edits: list[Edit] = []
    for kind, total in (("attn_out", heads), ("mlp_out", neurons)):
        here = {layer: influence[kind, layer] for layer in fitting.layers}
        room = {layer: int((scores[kind, layer] > 0).sum()) for layer in fitting.layers}
        for layer, n in sorted(shared_out(here, room, total).items()):
            units = sorted(scores[kind, layer].topk(n).indices.tolist())
            make = head_edit if kind == "attn_out" else neuron_edit
            edits.append(make(subject, layer, units, found))
    return edits


def differences(
    subject: Subject, contrast: Contrast, form: Form, how: How, fitting: Fitting | None = None
) -> Differences:  # fmt: skip
    """At every hookpoint of every layer. Raises InputError where the sides do not differ behind the last block."""
    weights = form_weights(contrast, form)
    keys = [(kind, layer) for layer in range(subject.n_layers) for kind in KINDS]
    sites = Hookpoints(tuple(f"layers.{layer}.{kind}" for kind, layer in keys))
    progress = {} if fitting is None else {"progress": fitting.progress}
    given = subject, contrast.examples, sites, range(len(keys)), weights[:, None], how
    sums, lengths = weighted(*given, **progress)
    at = {key: sums[i][0] for i, key in enumerate(keys)}
    late = [*range(subject.n_layers)][-ceil(subject.stack_sizes[-1] * LATE) :]
    last = at["resid_post", late[-1]]
    units = [unit(at["resid_post", layer]) for layer in late]
    reference = unit(sum((x if float(x @ last) >= 0 else -x for x in units), torch.zeros_like(last)))
    if not float(reference.norm()) > 0:
        raise InputError("the sides do not differ behind the last block: give other sequences or labels.")
    return Differences(
        torch.from_numpy(weights), how, at, {key: lengths[i] for i, key in enumerate(keys)}, reference
    )  # fmt: skip


KINDS = ("head_out", "attn_out", "mlp_in", "neuron", "mlp_out", "resid_post")


def unit(x: Tensor) -> Tensor:
    """At unit norm, 0 where it is 0."""
    return x / x.norm().clamp(min=torch.finfo(x.dtype).tiny)


def neuron_scores(subject: Subject, found: Differences, layers: tuple[int, ...]) -> dict[Sublayer, Tensor]:
    """float64 `[neurons]` of each MLP: what the difference of a neuron writes along that of the stream behind it."""
    scores = {}
    for layer in layers:
        writes = subject.neuron_writes(layer)[0].double().cpu()
        scores["mlp_out", layer] = found.at["neuron", layer] * (writes @ unit(found.at["resid_post", layer]))
    return scores


def head_scores(fitting: Fitting, found: Differences) -> dict[Sublayer, Tensor]:
    """float64 `[heads]` of each attention: how far the difference falls, along its own direction at what the next MLP
    reads, when a head is zeroed everywhere."""
    subject, scores = fitting.subject, {}
    for layer in fitting.progress(fitting.layers, "zeroing heads"):
        kind, behind = next_read(subject, layer)
        whole = found.at[kind, behind]
        falls = torch.zeros(subject.n_heads(layer), dtype=torch.float64)
        own = found.at["head_out", layer].unflatten(0, (len(falls), -1)).norm(dim=-1)
        for head in torch.nonzero(own)[:, 0].tolist():  # others have nothing to be patched with
            plan = Plan.of(Intervention(Heads(), Set(0.0), Select((layer,), (head,))))
            given = subject, fitting.contrast.examples, Hookpoints((f"layers.{behind}.{kind}",)), (0,), found.how
            falls[head] = (whole - found.weights @ pooled(*given, plan=plan)[0]) @ unit(whole)
        scores["attn_out", layer] = falls
    return scores


def next_read(subject: Subject, layer: int) -> Sublayer:
    """(hookpoint, layer) of the first MLP input that heads of a layer write to: that of their own block, or, where
    attention and MLP of a block read one norm, of the next; the stream itself where no MLP follows."""
    stack, index = [*subject.family.blocks(*subject.stack_sizes)][layer]
    if len(stack.norms) > 1:
        return "mlp_in", layer
    size = len(subject.module(stack.layers))  # pyright: ignore[reportArgumentType]
    return ("mlp_in", layer + 1) if index + 1 < size else ("resid_post", layer)


def influences(fitting: Fitting, found: Differences, inputs: int) -> dict[Sublayer, float]:
    """I of every sublayer of the layers, the mean over `ALPHAS`; 0 of one that writes the same on both sides."""
    subject, contrast = fitting.subject, fitting.contrast
    examples = [contrast.examples[i] for i in contrast.negative[:inputs]]
    given = subject, examples, Residuals(), (subject.n_layers - 1,), found.how
    end = lambda plan: pooled(*given, plan=plan)[subject.n_layers - 1].mean(0)  # noqa: E731
    plain, influence = end(Plan()), dict[Sublayer, float]()
    for layer in fitting.progress(fitting.layers, "adding to sublayers"):
        for kind in ("attn_out", "mlp_out"):
            size, vector = found.lengths[kind, layer], found.at[kind, layer]
            if not (size > 0 and float(vector.norm()) > 0):
                influence[kind, layer] = 0.0
                continue
            site = Hookpoints((f"layers.{layer}.{kind}",))
            edit = AddEdit(components=site, layer=0, direction=vector, scale=size)
            moved = [(end(edit.plan(alpha)) - plain) @ found.reference / (alpha * size) for alpha in ALPHAS]
            influence[kind, layer] = float(torch.stack(moved).mean())
    return influence


def shared_out(influence: dict[int, float], room: dict[int, int], total: int) -> dict[int, int]:
    """Layer → its share of `total` places, in proportion to influence above 0 and at most its `room`, by the method of
    Sainte-Laguë; layers without a place are left out."""
    places = dict.fromkeys(influence, 0)
    for _ in range(total):
        open_ = [layer for layer in places if influence[layer] > 0 and places[layer] < room[layer]]
        if not open_:
            break
        places[max(open_, key=lambda layer: influence[layer] / (2 * places[layer] + 1))] += 1
    return {layer: n for layer, n in places.items() if n}


def neuron_edit(subject: Subject, layer: int, units: list[int], found: Differences) -> Edit:
    """A twin has the same values at other neurons that differ between the sides, or at any where too few do."""
    values = found.at["neuron", layer]
    differing = {*torch.nonzero(values)[:, 0].tolist()} - {*units}
    pool = differing | {*units} if len(differing) >= len(units) else {*range(len(values))}
    return FeatureEdit(
        components=Neurons(), layer=layer, units=tuple(units), values=values[units], mode="add",
        pool=tuple(sorted(pool)),
    )  # fmt: skip


def head_edit(subject: Subject, layer: int, units: list[int], found: Differences) -> Edit:
    """A twin has a random direction over all heads of the layer."""
    whole = found.at["head_out", layer].unflatten(0, (subject.n_heads(layer), -1))
    chosen = torch.zeros_like(whole)
    chosen[units] = whole[units]
    return AddEdit(components=Heads(), layer=layer, direction=chosen, scale=float(chosen.norm()))
