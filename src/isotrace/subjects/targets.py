"""What is explained: a scalar read from the subject's final hidden state (METHODS §5).

mask:POS[:TOKEN]  logit of TOKEN at masked position POS minus the mean logit; TOKEN defaults to the true one
diff:POS:A:B      logit of A minus logit of B at masked position POS
probe:NAME        output of a probe (log-odds or the property itself)

A causal subject predicts position POS from what stands before it: nothing is masked, and the logits are read one
position earlier. POS may be that behind the last token of the text, whatever a tokenizer adds there: TOKEN is then the
one that the subject finds most probable, if it is left out.

Positions count the tokens of the input as the subject sees them: with a `<cls>` in front, the first SMILES token is 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isotrace.base.errors import InputError
from isotrace.base.registry import Registry
from isotrace.base.settings import whole_number
from isotrace.subjects.probe import Probe, load_probe, pool, pooling_weights, probes_of

if TYPE_CHECKING:
    from torch import Tensor

    from isotrace.subjects.frozen import FrozenSubject
    from isotrace.subjects.subject import Batch, Subject


@dataclass(frozen=True)
class Target:
    """`position` is that of the predicted token; `positive` and `negative` are token ids (negative None: the mean
    over the vocabulary)."""

    kind: str
    name: str
    description: str
    unit: str
    position: int | None = None
    positive: int | None = None
    negative: int | None = None
    probe: Probe | None = None

    def prepare(self, subject: "Subject", batch: "Batch") -> "Batch":
        """The input as the target needs it: with its position masked, or unchanged. Raises as
        `Subject.prepare_prediction` does."""
        return batch if self.position is None else subject.prepare_prediction(batch, self.position)[0]

    def _contrast(self, logits: "Tensor") -> "Tensor":
        reference = logits.mean(-1) if self.negative is None else logits[..., self.negative]
        return logits[..., self.positive] - reference

    def value(self, subject: "Subject", batch: "Batch", final: "Tensor") -> "Tensor":
        """`[batch]` from final hidden states `[batch, tokens, d_model]`."""
        if self.probe is not None:
            return self.probe.value(pool(subject, batch, final))
        assert self.position is not None
        return self._contrast(subject.head(final[:, subject.reading_position(self.position)]))

    def linear(self, frozen: "FrozenSubject") -> "tuple[Tensor, float]":
        """(gradient `[tokens, d_model]`, constant): the target as an affine function of the final hidden state
        on the frozen input. Exact for a probe; for logits the head is linearised at this input."""
        import torch

        from isotrace.subjects.subject import Batch

        final = frozen.actual.final[0]
        if self.probe is not None:
            vector, constant = self.probe.read_vector()
            weights = pooling_weights(frozen.subject, Batch(frozen.ids, frozen.mask, (), ()))[0]
            return weights[:, None].to(final) * vector.to(final), constant
        assert self.position is not None
        place = frozen.subject.reading_position(self.position)
        row = final[place].detach().clone().requires_grad_(True)
        value = self._contrast(frozen.head_map(place)(row))
        (gradient,) = torch.autograd.grad(value, row)
        full = torch.zeros_like(final)
        full[place] = gradient
        return full, float(value.detach() - gradient @ row.detach())


Parser = Callable[[str, "Subject", "Batch"], Target]
"""(the whole text, the subject, a batch whose first sequence is asked about) → target, or raises InputError"""
TARGETS: Registry[Parser] = Registry("target", "isotrace.targets")


def parse_target(text: str, subject: "Subject", batch: "Batch") -> Target:
    """The target `text` names, on the first sequence of `batch`. Raises InputError with the way out, SubjectError
    where the subject predicts no tokens or has no mask token."""
    return TARGETS[kind_of(text, subject.files.folder)](text, subject, batch)


def check_target(text: str, subject: "Subject") -> None:
    """Raises as `parse_target` for a target that fits no sequence: an unknown kind, probe or token, a position that
    none has, something the subject cannot predict."""
    kind, (where, _, tokens) = kind_of(text, subject.files.folder), text.partition(":")[2].partition(":")
    if kind == "probe":
        load_probe(subject, text.partition(":")[2])
    if kind in ("mask", "diff"):
        position = whole_number(where)
        if position is None or not 0 <= position <= subject.max_tokens:
            positions = f"positions are whole numbers from 0 to at most {subject.max_tokens}"
            raise InputError(f"position {where!r} is out of range: {positions}.")
        subject.reading_position(position)
        if kind == "diff":
            _pair(text, tokens, subject)
        elif tokens:
            subject.token_id(tokens)


def kind_of(text: str, folder: Path | None) -> str:
    """Which of `TARGETS` a text names, for the subject in `folder`. Raises InputError for none, with the probe that may
    be meant."""
    kind, _, rest = text.partition(":")
    if kind in TARGETS and rest:
        return kind
    others = "".join(f", {name}:…" for name in TARGETS if name not in ("mask", "diff", "probe"))
    use = f"use mask:POS[:TOKEN], diff:POS:A:B or probe:NAME{others}"
    for name in (text, rest):
        if (folder and name in probes_of(folder)) or name.endswith(".json"):
            use = f"did you mean probe:{name}? Else {use}"
    raise InputError(f"{text!r} is no target: {use}.")


def _pair(text: str, tokens: str, subject: "Subject") -> tuple[str, str]:
    """The two tokens between which ":" stands, which is itself a token."""
    vocabulary = subject.tokenizer.get_vocab()
    for place, character in enumerate(tokens):
        first, second = tokens[:place], tokens[place + 1 :]
        if character == ":" and first in vocabulary and second in vocabulary:
            return first, second
    raise InputError(f"{text!r} names no two tokens of {subject.source}: use diff:POS:A:B.")


@TARGETS.named("probe")
def _probe(text: str, subject: "Subject", batch: "Batch") -> Target:
    probe = load_probe(subject, text.partition(":")[2])
    return Target("probe", text, probe.description, probe.unit, probe=probe)


def end_of(subject: "Subject", batch: "Batch") -> int | None:
    """Of a causal subject, the position behind the text of the first sequence: of its end token, if it has one. None of
    others, which predict none there."""
    if subject.objective != "causal":
        return None
    return int((~subject.special(batch.ids[0]) & batch.mask[0]).nonzero().max()) + 1


@TARGETS.named("mask")
@TARGETS.named("diff")
def _token(text: str, subject: "Subject", batch: "Batch") -> Target:
    kind, _, rest = text.partition(":")
    where, _, tokens = rest.partition(":")
    allowed = (~subject.special(batch.ids[0]) & batch.mask[0]).nonzero()[:, 0].tolist()
    if (end := end_of(subject, batch)) is not None:
        allowed = [p for p in (*allowed, end) if p > 0]
    choice = f"positions {allowed[0]} to {allowed[-1]}" if allowed else "no position to predict"
    position = whole_number(where)
    if position is None or not (0 <= position < int(batch.mask[0].sum()) or position == end):
        behind = "; what follows the end only a causal subject predicts" if position and end is None else ""
        raise InputError(f"position {where!r} is out of range: this input has {choice}{behind}.")
    place = subject.reading_position(position)
    if position == end:
        best = subject.run(batch).logits
        assert best is not None  # `reading_position` has asked for a head
        true, stands = subject.tokens(best[0, place].argmax()[None])[0], "nothing stands there yet"
    elif bool(subject.special(batch.ids[0, position])):
        name = subject.tokens(batch.ids[0, position : position + 1])[0]
        raise InputError(f"position {position} is {name}: pick another, this input has {choice}.")
    else:
        true = subject.tokens(batch.ids[0, position : position + 1])[0]
        stands = f"there stands {true}"
    hidden = place == position
    where = f"at masked position {position}" if hidden else f"for position {position}, read before it"
    if kind == "mask":
        token = tokens or true
        description = f"logit of {token} minus the mean logit {where} ({stands})"
        return Target("mask", text, description, "logit", position, subject.token_id(token))
    pair = _pair(text, tokens, subject)
    positive, negative = map(subject.token_id, pair)
    description = f"logit of {pair[0]} minus logit of {pair[1]} {where} ({stands})"
    return Target("diff", text, description, "logit", position, positive, negative)
