"""What is explained: a scalar read from the subject's final hidden state (METHODS §5).

mask:POS[:TOKEN]  logit of TOKEN at masked position POS minus the mean logit; TOKEN defaults to the true one
diff:POS:A:B      logit of A minus logit of B at masked position POS
probe:NAME        output of a probe (log-odds or the property itself); NAME is one that ships, or a folder of
                  `isotrace probe`; of three classes or more :CLASS or :CLASS-OTHER behind it; of labels per atom or
                  residue :POS[:CLASS]

What is read from the head of a fine-tuned subject, class:, output: and label:, stands in `heads.targets`; what is said
of variants of a sequence, mutation:A24G[:K31R…], in `heads.mutations`.

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
from isotrace.subjects.probe import Probe, load_probe, probe_folder, probes_of, read_config

if TYPE_CHECKING:
    from torch import Tensor

    from isotrace.subjects.frozen import FrozenSubject
    from isotrace.subjects.subject import Batch, Subject


@dataclass(frozen=True)
class Target:
    """`position` is that of the predicted token; `positive` and `negative` are token ids (negative None: the mean
    over the vocabulary). `probe` has one output; `outputs`: how often every output of the task head counts, where that
    is read. `place`: the token at which a probe or head of single tokens is read. `swaps`: (position, token id before,
    after) of every mutation, whose differences of logits are added up."""

    kind: str
    name: str
    description: str
    unit: str
    position: int | None = None
    positive: int | None = None
    negative: int | None = None
    probe: Probe | None = None
    place: int | None = None
    outputs: tuple[float, ...] | None = None
    swaps: tuple[tuple[int, int, int], ...] = ()

    @property
    def asked(self) -> tuple[int, ...]:
        """Positions whose tokens are predicted, and hidden where the subject fills masks."""
        return tuple(at for at, _, _ in self.swaps) if self.position is None else (self.position,)

    @property
    def reads(self) -> tuple[int, ...]:
        """The layers it reads, see `Subject.hidden`; empty is the final hidden state."""
        return () if self.probe is None else self.probe.config.layers

    def hidden(self, subject: "Subject", batch: "Batch") -> "Tensor":
        """What `value` is computed from, `[batch, tokens, d_read]`."""
        return subject.hidden(batch.ids, batch.mask, self.reads)

    def prepare(self, subject: "Subject", batch: "Batch") -> "Batch":
        """The input as the target needs it: with all positions that are asked for masked, or unchanged. Raises as
        `Subject.prepare_prediction` does."""
        for position in self.asked:
            batch = subject.prepare_prediction(batch, position)[0]
        return batch

    def _predicted(self, subject: "Subject", head: "Callable[[int], Tensor]") -> "Tensor":
        """From the logits `[…, vocabulary]` that `head` gives at a place."""
        changes = [(at, after, before) for at, before, after in self.swaps]
        parts = []
        for at, positive, negative in changes or [(self.position, self.positive, self.negative)]:
            assert at is not None
            logits = head(subject.reading_position(at))
            parts.append(logits[..., positive] - (logits.mean(-1) if negative is None else logits[..., negative]))
        return sum(parts[1:], parts[0])

    def _combined(self, outputs: "Tensor") -> "Tensor":
        return outputs @ outputs.new_tensor(self.outputs)

    def value(self, subject: "Subject", batch: "Batch", hidden: "Tensor") -> "Tensor":
        """`[batch]` from `hidden [batch, tokens, d_read]`, see `hidden`."""
        if self.probe is not None:
            read = self.probe.read(subject, batch, hidden)[..., 0]
            return read if self.place is None else read[:, self.place]
        if self.outputs is not None:
            task = subject.require_task()
            return self._combined(task.outputs(task.pooled(batch, hidden, self.place)))
        return self._predicted(subject, lambda place: subject.head(hidden[:, place]))

    def linear(self, frozen: "FrozenSubject") -> "tuple[Tensor, float]":
        """(gradient `[tokens, d_read]`, constant): the target as an affine function of what it reads on the frozen
        input. Exact for a probe that takes means; a maximum is taken where it lies on this input, and a head is
        linearised at it."""
        import torch

        from isotrace.subjects.subject import Batch

        subject, batch = frozen.subject, Batch(frozen.ids, frozen.mask, (), ())
        read = frozen.actual.final.detach().clone().requires_grad_(True)
        if self.probe is not None:
            value = self.value(subject, batch, read)[0]
        elif self.outputs is not None:
            pooled = subject.require_task().pooled(batch, read, self.place)[0]
            value = self._combined(frozen.task_map(pooled.detach())(pooled))
        else:
            value = self._predicted(subject, lambda place: frozen.head_map(place)(read[0, place]))
        (gradient,) = torch.autograd.grad(value, read)
        return gradient[0], float(value.detach() - (gradient * read.detach()).sum())


Parser = Callable[[str, "Subject", "Batch"], Target]
"""(the whole text, the subject, a batch whose first sequence is asked about) → target, or raises InputError"""
_TASK = "isotrace.subjects.heads.targets:task_target"
_MUTATION = "isotrace.subjects.heads.mutations:mutation_target"
TARGETS: Registry[Parser] = Registry(
    "target", "isotrace.targets", dict.fromkeys(("class", "output", "label"), _TASK) | {"mutation": _MUTATION}
)


def parse_target(text: str, subject: "Subject", batch: "Batch") -> Target:
    """The target `text` names, on the first sequence of `batch`. Raises InputError with the way out, SubjectError
    where the subject predicts no tokens or has no mask token."""
    return TARGETS[kind_of(text, subject.files.folder)](text, subject, batch)


def check_target(text: str, subject: "Subject") -> None:
    """Raises as `parse_target` for a target that fits no sequence: an unknown kind, probe or token, a position that
    none has, something the subject cannot predict."""
    kind, (where, _, tokens) = kind_of(text, subject.files.folder), text.partition(":")[2].partition(":")
    if kind == "probe":
        probe, rest = load_probe(subject, text.partition(":")[2])
        _output(text, probe, rest)
    if kind in ("class", "output", "label"):
        from isotrace.subjects.heads.targets import task_target

        task_target(text, subject)
    if kind == "mutation":
        from isotrace.subjects.heads.mutations import mutation_target

        mutation_target(text, subject)
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
    known = (
        "mask:POS[:TOKEN], diff:POS:A:B, mutation:A24G, class:LABEL[-OTHER], output:NAME, label:POS:NAME or probe:NAME"
    )
    own = [name for name in TARGETS if f"{name}:" not in known]
    use = f"use {known}" + "".join(f", {name}:…" for name in own)
    for name in (text, rest):
        if folder and name and name in probes_of(folder):
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


def look_at_target(text: str, folder: Path, source: str) -> None:
    """Raises what can be told of a target of the subject in `folder` before torch is imported."""
    kind = kind_of(text, folder)
    if kind == "probe":
        read_config(probe_folder(folder, source, text.partition(":")[2])[0])
    if kind in ("class", "output", "label"):
        from isotrace.subjects.heads.targets import look_at_head

        look_at_head(text, folder, source)
    if kind == "mutation":
        from isotrace.domains.mutations import residue_changes

        residue_changes(text.partition(":")[2])


def _output(text: str, probe: Probe, rest: list[str]) -> tuple[str | None, str, Probe]:
    """(position, what is read, the probe of that output) from the parts behind its name."""
    config = probe.config
    position = rest.pop(0) if config.pool == "token" and rest else None
    if config.pool == "token" and position is None:
        raise InputError(f"{text!r} reads single tokens: give the position, probe:NAME:POS.")
    asked, outputs = ":".join(rest), list(config.outputs)
    if len(outputs) == 1:
        if asked:
            raise InputError(f"{text!r} has one output, {outputs[0]}: leave out {asked!r}.")
        return position, config.description, probe
    if asked in outputs:
        said = f"logit of {asked} minus the mean of the other classes"
        return position, f"{config.description}: {said}", probe.only(outputs.index(asked))
    for one in outputs:
        other = asked.removeprefix(f"{one}-")
        if asked.startswith(f"{one}-") and other in outputs and other != one:
            said = f"{config.description}: logit of {one} minus logit of {other}"
            return position, said, probe.only(outputs.index(one), outputs.index(other))
    raise InputError(f"{text!r} names no class: put :CLASS or :CLASS-OTHER behind it, of {', '.join(outputs)}.")


@TARGETS.named("probe")
def _probe(text: str, subject: "Subject", batch: "Batch") -> Target:
    probe, rest = load_probe(subject, text.partition(":")[2])
    where, description, one = _output(text, probe, rest)
    place = None
    if where is not None:
        allowed = (~subject.special(batch.ids[0]) & batch.mask[0]).nonzero()[:, 0].tolist()
        if (place := whole_number(where)) not in allowed:
            raise InputError(
                f"position {where!r} is no token to read: this input has positions {allowed[0]} to {allowed[-1]}."
            )
        description += f" at position {place}"
    return Target("probe", text, description, probe.config.unit, probe=one, place=place)


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
