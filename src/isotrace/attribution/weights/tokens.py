"""Tokens at both ends of a feature: what it reads of their embeddings (de-embedding), and what it writes to the logits
(un-embedding).

De-embedding is E P r, every token of the vocabulary against the read vector: at layer 0 all that stands at a token, up
to the norm and the heads; deeper only the direct part, and `contributions.shares` says how much that is. Un-embedding
is W_dec P W_U: linear where the head is, through the head's own function by its secant gate where it has one, which is
averaged over the tokens where the feature fires.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from isotrace.attribution.weights.global_edges import PERMUTATIONS, null_threshold, permuted
from isotrace.attribution.weights.record import Recordings
from isotrace.attribution.weights.routes import Reads, Route, groups
from isotrace.attribution.weights.segments import FINAL, Place
from isotrace.base.errors import SubjectError
from isotrace.subjects.frozen import FrozenSubject

STRONGEST = 16
"""Tokens whose gates are averaged, those at which a feature is most active, one of a sequence."""


@dataclass(frozen=True, eq=False)
class Words:
    """All `[vocabulary, n]`, in standard deviations of the pre-activation. `where`: E P r with the mean c of the tokens
    counted, what a token gives where it stands; through heads as if they attended to it alone, A = 1. `given`: what it
    gives on average when the feature fires. `threshold [n]`: that of `given` with embeddings permuted among tokens
    about as frequent. `count [vocabulary]`: how often each stands in the sequences."""

    where: Tensor
    given: Tensor
    threshold: Tensor
    count: Tensor


@torch.no_grad()
def de_embedding(
    recordings: Recordings, reads: Reads, route: Route = (), *, permutations: int = PERMUTATIONS, seed: int = 0
) -> Words:
    """Raises SubjectError where no embedding reaches the features by that route."""
    segments, subject = recordings.segments, recordings.segments.subject
    index = next(i for i, e in enumerate(subject.embeddings) if e.kind == "token")
    at, n_words, last = Place("embedding", index), len(subject.tokenizer), reads.last(route)
    if not segments.joined(at, last):
        raise SubjectError("no embedding reaches this feature by that route: take another.")
    words = subject.embeddings[index].module(torch.arange(n_words, device=segments.device))
    weights = words @ reads.weights(route, at).T
    met, count, gains = torch.zeros_like(weights), weights.new_zeros(n_words), 0.0
    for recorded in recordings:
        asked = recorded.dense(segments, reads.slot, reads.features) * recorded.counted[..., None]
        gain = segments.gain(at, last, recorded.sigma)[..., None]
        met.index_add_(0, recorded.ids.flatten(), (reads.backed(recorded, asked, route) * gain).flatten(0, 1))
        every = reads.backed(recorded, recorded.counted[..., None].to(gain), route) * gain
        gains, count = gains + float(every.sum()), count + recorded.ids.flatten().bincount(minlength=n_words)
    unit, total = (x[reads.slot, reads.features].to(words) for x in (recordings.deviation, recordings.total))
    met = met * torch.where((total > 0) & (unit > 0), 1 / (total * unit), torch.nan)
    orders = permuted(count, permutations, (seed, 1))
    threshold = null_threshold([weights], [met], met != 0, orders)
    return Words(weights * (gains / recordings.n_tokens) / unit, weights * met, threshold, count)


@torch.no_grad()
def un_embedding(recordings: Recordings, slot: int, feature: int) -> Tensor:
    """float64 `[vocabulary]`: by how much the logits, less their mean, rise for what the feature writes on the direct
    way to the head, averaged over its strongest tokens, one of a sequence. Raises SubjectError without a head, and
    where the feature never fires or nothing it writes reaches the head but through others."""
    segments, subject = recordings.segments, recordings.segments.subject
    if not subject.has_head:
        raise SubjectError(f"{subject.source} has no language-model head, so a feature promotes no token.")
    found: list[tuple[float, int, int]] = []
    one = torch.tensor([feature], device=segments.device)
    for number, recorded in enumerate(recordings):
        values = recorded.dense(segments, slot, one)[..., 0] * recorded.counted
        best = values.max(1)
        found += [(float(v), number, row) for row, v in enumerate(best.values) if float(v) > 0]
    ways = [group for group in groups(segments, FINAL) if group.source == slot]
    if not found or not ways:
        raise SubjectError("the feature never fires here, or reaches the head through heads and MLPs alone.")
    eye = torch.eye(subject.d_model, device=segments.device, dtype=subject._weight.dtype)
    targets = [Place("features", t) for group in ways for t in group.targets]
    pulled = segments.pulled(FINAL, eye, targets)
    total = torch.zeros(1, dtype=torch.float64, device=segments.device)
    strongest = sorted(found, reverse=True)[:STRONGEST]
    for activation, number, row in strongest:
        rows, batch = recordings.batches[number]
        alone = subject.tokenize([batch.sequences[row]])
        recorded = recordings.record(rows[row : row + 1], alone)
        place = int((recorded.dense(segments, slot, one)[0, :, 0] * recorded.counted[0]).argmax())
        written = eye.new_zeros(subject.d_model)
        for group in ways:
            gain = group.gain(segments, recorded, FINAL)[0, place]
            for target in group.targets:
                vector = segments.dictionary.decoder(slot, target)[feature]
                written += activation * gain * (pulled[Place("features", target)] @ vector)
        frozen = FrozenSubject(subject, alone)
        final, head = frozen.actual.final[0, place], frozen.head_map(place)
        total = total + (head(final + written) - head(final)).double().flatten()
    effect = total / len(strongest)
    return effect - effect.mean()
