"""Tokens at both ends of a feature: what it reads of their embeddings (de-embedding), and what it writes to the logits
(un-embedding).

De-embedding is E P r, every token of the vocabulary against the read vector: at layer 0 all that stands at a token, up
to the norm and the heads; deeper only the direct part, and `contributions.shares` says how much that is. Un-embedding
is W_dec P W_U: linear where the head is, through the head's own function by its secant gate where it has one, which is
averaged over the tokens where the feature fires.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from isotrace.attribution.weights.record import Recordings
from isotrace.attribution.weights.routes import Reads, Route, groups
from isotrace.attribution.weights.segments import FINAL, Place
from isotrace.base.errors import SubjectError
from isotrace.subjects.frozen import FrozenSubject

STRONGEST = 16
"""Tokens whose gates are averaged, those at which a feature is most active, one of a sequence."""


@torch.no_grad()
def de_embedding(recordings: Recordings, reads: Reads, route: Route = ()) -> tuple[Tensor, Tensor]:
    """(E P r with the mean c of the tokens counted, G), `[vocabulary, n]` each, in standard deviations of the
    pre-activation: what a token gives where it stands, and what it gives on average when the feature fires. Through
    heads, the first weighs a token by all the attention it could get, A = 1."""
    segments, subject = recordings.segments, recordings.segments.subject
    index = next(i for i, e in enumerate(subject.embeddings) if e.kind == "token")
    at, n_words = Place("embedding", index), len(subject.tokenizer)
    words = subject.embeddings[index].module(torch.arange(n_words, device=segments.device))
    if not segments.joined(at, reads.last(route)):
        raise SubjectError("no embedding reaches this feature by that route: take another.")
    weights = words @ reads.weights(route, at).T
    asked_of = torch.zeros_like(weights)
    gains, n = 0.0, 0
    for recorded in recordings:
        asked = recorded.dense(segments, reads.slot, reads.features) * recorded.counted[..., None]
        gain = segments.gain(at, reads.last(route), recorded.sigma)
        asked_of.index_add_(
            0, recorded.ids.flatten(), (reads.backed(recorded, asked, route) * gain[..., None]).flatten(0, 1)
        )
        every = reads.backed(recorded, recorded.counted[..., None].to(gain), route)[..., 0] * gain
        gains, n = gains + float(every.sum()), n + int(recorded.counted.sum())
    unit = recordings.deviation[reads.slot, reads.features].float()
    total = recordings.total[reads.slot, reads.features].float()
    return weights * (gains / n) / unit, weights * asked_of / (total * unit)


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
        total = total + (head(final + written) - head(final)).double()
    effect = total / len(strongest)
    return effect - effect.mean()


def classes_of(recordings: Recordings) -> dict[str, list[tuple[int, int, int]]]:
    """What tokens stand for, as the domain says (atom, bond, ring, branch, …; residue) → (batch, row, position) of
    every token counted; `token` for all where the subject names no domain."""
    from isotrace.domains.domain import domain_of

    subject = recordings.segments.subject
    domain = None if subject.files.domain is None else domain_of(subject.files.domain)
    found: dict[str, list[tuple[int, int, int]]] = {}
    for number, (_, batch) in enumerate(recordings.batches):
        special = subject.special(batch.ids).cpu()
        for row, text in enumerate(batch.sequences):
            tokens = subject.tokens(batch.ids[row])
            units = None if domain is None else domain.read(text, tokens, batch.offsets[row]).units
            for place in range(len(tokens)):
                kind = "special" if special[row, place] else "token" if units is None else _kind(units[place])
                found.setdefault(kind, []).append((number, row, place))
    return found


def _kind(unit: object) -> str:
    return str(getattr(unit, "kind", "token"))


def strongest(values: Sequence[float] | np.ndarray | Tensor, n: int) -> list[int]:
    """Places of the `n` largest by size, those that are not zero, largest first."""
    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    order = np.argsort(-np.abs(values), kind="stable")[:n]
    return [int(i) for i in order if values[i] != 0]
