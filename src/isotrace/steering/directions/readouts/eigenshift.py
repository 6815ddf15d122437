"""EigenShift: the directions of the head that stand out before unwanted tokens, made smaller.

The head's weight W `[vocabulary, d]` is U Σ Vᵀ. Where an unwanted token is predicted, what the head reads lies further
along some v_i than elsewhere. Shrinking σ_i by a factor is the same as shrinking v_i·h in what the head reads, and that
is what the edit does: tied embeddings stay whole.
"""

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.datasets.tasks import Example
from isotrace.interventions.hookpoints import HeadInputs
from isotrace.steering import RemoveEdit
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.directions.readouts.sites import Site, asked, at, sites_where
from isotrace.steering.directions.units.token_mass import token_set


@direction(
    "eigenshift", labels="binary", cost="N · sites F", tuned="share, α", components=HeadInputs,
    source="EigenShift 2025",
)  # fmt: skip
def eigenshift(fitting: Fitting, tokens: str, share: float = 0.05, sites: int = 4, seed: int = 0) -> list[RemoveEdit]:
    """Right singular vectors of the head that unwanted `tokens` stand along, shrunk by α

    Read where these tokens are predicted in negative sequences, at most `sites` in each, and at places of other tokens
    in positive ones. The `share` of the vectors with the largest difference, in pooled standard deviations and of
    either sign (that of a singular vector is arbitrary), are shrunk: to nothing at α = 1. Raises InputError where
    either side has no such place, SubjectError for a subject without a head."""
    subject, contrast, parts = fitting.subject, fitting.contrast, fitting.components
    if not isinstance(parts, HeadInputs):
        raise InputError(f"eigenshift edits what the head reads, not {parts.name}s: leave out the components.")
    unwanted = {*token_set(subject, tokens)}
    _, sizes, vectors = torch.linalg.svd(parts.weight(subject).detach().double().cpu(), full_matrices=False)
    vectors = vectors[sizes > 1e-6 * sizes[0]]  # what the head does not read cannot matter
    along = []
    for rows, inside in ((contrast.negative, True), (contrast.positive, False)):
        examples = [contrast.examples[i] for i in rows]
        places = sites_where(subject, examples, lambda t, inside=inside: (t in unwanted) == inside, sites, seed)
        if len(places) < 2:
            side = "negative sequences hold no" if inside else "positive sequences hold nothing but"
            raise InputError(f"{side} token of {tokens}, so there is no difference to find: name other tokens.")
        along.append(read_inputs_of_head(fitting, examples, places) @ vectors.T)
    n = max(1, round(share * len(vectors)))
    top = standardised_difference(*along).abs().topk(n).indices
    shaped = vectors[top][:, None] if n > 1 else vectors[top]
    return [RemoveEdit(components=parts, layer=0, direction=shaped)]


@torch.no_grad()
def read_inputs_of_head(fitting: Fitting, examples: list[Example], places: list[Site]) -> Tensor:
    """float64 `[sites, d]`: what the head reads at each."""
    found = []
    for batch, where in asked(fitting.subject, examples, places):
        values = fitting.components.record(fitting.subject, batch)[0][0]
        found.append(at(values[..., 0, :], where).double().cpu())
    return torch.cat(found)


def standardised_difference(a: Tensor, b: Tensor) -> Tensor:
    """`[d]` of `[n, d]` and `[m, d]`: the difference of means in pooled standard deviations."""
    spread = ((a.var(0) * (len(a) - 1) + b.var(0) * (len(b) - 1)) / (len(a) + len(b) - 2)).sqrt()
    return (a.mean(0) - b.mean(0)) / spread.clamp(min=1e-12)
