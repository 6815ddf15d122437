"""Components that are the tensor at a hookpoint, split into parts: what is set is what flows on."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from isotrace.base.errors import InputError, SubjectError
from isotrace.interventions.components import Components, Edit, Layers, Values, register
from isotrace.interventions.writers import Writers
from isotrace.subjects.dispatch import Site, hookpoints_edited, overlaid
from isotrace.subjects.subject import Batch, Subject


def flowing(edit: Edit, layer: int, x: Tensor, size: tuple[int, int]) -> Tensor:
    """x `[batch, tokens, d]` with its components edited. Raises InputError where something else computes them."""
    if x.shape[-1] != size[0] * size[1]:
        raise InputError(f"layer {layer} has no such components here: other ones replace it, so leave one of them out.")
    values = x.unflatten(-1, size)
    new = edit(layer, values)
    return x if new is values else new.flatten(-2)


class AtHookpoint(Components):
    """`kind` is the hookpoint's, see `subjects.families.Stack.hookpoints`."""

    kind: ClassVar[str]

    def edited(self, subject: Subject, edit: Edit, layers: Layers = None) -> AbstractContextManager[None]:
        return hookpoint_edited(self, subject, self.kind, range(subject.n_layers), edit, layers)


def hookpoint_edited(
    components: Components, subject: Subject, kind: str, numbers: Sequence[int], edit: Edit, layers: Layers
) -> AbstractContextManager[None]:
    """Context in which `components` are edited where they flow; `numbers`: the subject's of every layer of theirs."""
    sizes = components.sizes(subject)
    meant = [i for i in range(len(numbers)) if layers is None or i in layers]
    return hookpoints_edited(
        subject, {f"layers.{numbers[i]}.{kind}": lambda x, i=i: flowing(edit, i, x, sizes[i]) for i in meant}
    )


@register
@dataclass(frozen=True)
class Neurons(Writers):
    """Neurons of the MLP, of all layers or of `layers`: one number each, behind the activation function (and the
    gate). They are set where they flow; as `Writers` they are the rows of the MLP's last linear map."""

    name: ClassVar[str] = "neuron"
    layers: tuple[int, ...] | None = None

    def numbers(self, subject: Subject) -> tuple[int, ...]:
        return tuple(range(subject.n_layers)) if self.layers is None else self.layers

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        return tuple((len(subject.neuron_writes(layer)[0]), 1) for layer in self.numbers(subject))

    def edited(self, subject: Subject, edit: Edit, layers: Layers = None) -> AbstractContextManager[None]:
        return hookpoint_edited(self, subject, "neuron", self.numbers(subject), edit, layers)

    def reads(self, subject: Subject) -> Sequence[str]:
        return [f"layers.{layer}.neuron" for layer in self.numbers(subject)]

    def writes(self, subject: Subject) -> Sequence[str]:
        return [f"layers.{layer}.mlp_out" for layer in self.numbers(subject)]

    def encode(self, layer: int, x: Tensor) -> Tensor:
        return x

    def rows(self, subject: Subject, layer: int, keep: Tensor | slice) -> Tensor:
        return subject.neuron_writes(self.numbers(subject)[layer])[0][keep]

    def targets(self, layer: int) -> list[int]:
        return [layer]

    def finish(self, subject: Subject, layer: int, total: Tensor, x: Tensor) -> Tensor:
        bias = subject.neuron_writes(self.numbers(subject)[layer])[1]
        return total if bias is None else total + bias


@register
@dataclass(frozen=True, eq=False)
class AlongNeurons(Writers):
    """Neurons as if each wrote `vector [d_model]`: their activations, and what a change of them adds along it."""

    name: ClassVar[str] = "along_neuron"
    vector: Tensor

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        return Neurons().sizes(subject)

    def reads(self, subject: Subject) -> Sequence[str]:
        return Neurons().reads(subject)

    def writes(self, subject: Subject) -> Sequence[str]:
        return Neurons().writes(subject)

    def encode(self, layer: int, x: Tensor) -> Tensor:
        return x

    def rows(self, subject: Subject, layer: int, keep: Tensor | slice) -> Tensor:
        size = self.sizes(subject)[layer][0]
        vector = self.vector.to(subject.device, subject.model.dtype)
        return vector.expand(size, -1)[keep]

    def targets(self, layer: int) -> list[int]:
        return [layer]

    def finish(self, subject: Subject, layer: int, total: Tensor, x: Tensor) -> Tensor:
        raise InputError("what neurons add along one vector stands beside what they write, never for it.")


@register
class Heads(AtHookpoint):
    """Heads of self-attention: the output of each, before the map that joins them. Cross-attention has none here."""

    name, kind = "head", "head_out"

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        return tuple((subject.n_heads(layer), subject.d_head(layer)) for layer in range(subject.n_layers))


class _Whole(AtHookpoint):
    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        return ((1, subject.d_model),) * subject.n_layers


@register
class MLPs(_Whole):
    """The output of each layer's MLP, one component."""

    name, kind = "mlp", "mlp_out"


@register
class MLPInputs(_Whole):
    """What each layer's MLP reads, one component; the stream that passes it by is not changed."""

    name, kind = "mlp_input", "mlp_in"


@register
class Attentions(_Whole):
    """The output of each layer's self-attention, one component."""

    name, kind = "attention", "attn_out"


@register
class Residuals(_Whole):
    """The residual stream behind each layer, one component: its nodes are positions."""

    name, kind = "residual", "resid_post"


@register
@dataclass(frozen=True)
class Hookpoints(Components):
    """The whole tensors at the hookpoints `names`, one component each; a layer of the components is an entry, in the
    order in which the subject computes them. Pooled hookpoints have one token, see `subjects.heads.pooled`."""

    name: ClassVar[str] = "hookpoint"
    names: tuple[str, ...]

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        found = []
        for name in self.names:
            subject.hookpoint(name)
            layer, kind = int(name.split(".")[1]), name.rpartition(".")[2]
            if kind == "head_out":
                found.append((1, subject.n_heads(layer) * subject.d_head(layer)))
            else:
                found.append((1, len(subject.neuron_writes(layer)[0]) if kind == "neuron" else subject.d_model))
        return tuple(found)

    def edited(self, subject: Subject, edit: Edit, layers: Layers = None) -> AbstractContextManager[None]:
        sizes = self.sizes(subject)
        meant = [i for i in range(len(self.names)) if layers is None or i in layers]
        return hookpoints_edited(subject, {self.names[i]: lambda x, i=i: flowing(edit, i, x, sizes[i]) for i in meant})


@register
class HeadInputs(Components):
    """What the last linear map of the language-model head reads, a layer of one component: the final hidden state, or,
    where the head is more than that map, what its other parts make of it."""

    name = "head_input"

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        return ((1, self.weight(subject).shape[1]),)

    def edited(self, subject: Subject, edit: Edit, layers: Layers = None) -> AbstractContextManager[None]:
        if layers is not None and 0 not in layers:
            return nullcontext()
        size = self.sizes(subject)[0]

        def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (flowing(edit, 0, args[0], size), *args[1:])

        site = Site(before=(enter,), narrow=subject.narrow)
        return overlaid([(subject.module(subject.family.head_decoder), site)])

    def record(self, subject: Subject, batch: Batch) -> tuple[Values, Tensor]:
        found: list[Tensor] = []
        with self.edited(subject, lambda _, values: found.append(values) or values):
            final = subject.hidden(batch.ids, batch.mask)
            subject.head(final)
        return (found[0],), final

    def weight(self, subject: Subject) -> Tensor:
        """`[vocabulary, d]` of that map. Raises SubjectError without a head."""
        if not subject.has_head:
            raise SubjectError(f"{subject.source} has no language-model head, which an edit of its input needs.")
        return cast(Tensor, subject.module(subject.family.head_decoder).weight)


@register
class Embeddings(Components):
    """What each of `Subject.embeddings` puts into the stream, a layer of one component each; learned positions are
    looked up once for a batch, so that theirs have one row."""

    name = "embedding"

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        weights = [next(embedding.module.parameters()) for embedding in subject.embeddings]
        return tuple((1, weight.shape[-1]) for weight in weights)

    def edited(self, subject: Subject, edit: Edit, layers: Layers = None) -> AbstractContextManager[None]:
        sizes, sites = self.sizes(subject), []
        for layer, embedding in enumerate(subject.embeddings):
            if layers is not None and layer not in layers:
                continue

            def leave(_: nn.Module, args, output: Tensor, layer: int = layer) -> Tensor:
                shaped = output if output.dim() == 3 else output[None]
                return flowing(edit, layer, shaped, sizes[layer]).view_as(output)

            sites.append((embedding.module, Site(after=(leave,), narrow=subject.narrow)))
        return overlaid(sites)
