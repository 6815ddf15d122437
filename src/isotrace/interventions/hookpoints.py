"""Mediators that are the tensor at a hookpoint, split into components: what is set is what flows on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor

from isotrace.interventions.component import Edit, Mediator, register
from isotrace.subjects.dispatch import hookpoints_edited
from isotrace.subjects.subject import Subject


class Hookpoint(Mediator):
    """`kind` is the hookpoint's, see `subjects.families.Stack.hookpoints`."""

    kind: ClassVar[str]

    @contextmanager
    def edited(self, subject: Subject, edit: Edit) -> Iterator[None]:
        def change(x: Tensor, layer: int) -> Tensor:
            values = x.unflatten(-1, sizes[layer])
            new = edit(layer, values)
            return x if new is values else new.flatten(-2)

        sizes = self.sizes(subject)
        edits = {
            f"layers.{layer}.{self.kind}": lambda x, layer=layer: change(x, layer) for layer in range(subject.n_layers)
        }
        with hookpoints_edited(subject, edits):
            yield


@register
class Neurons(Hookpoint):
    """Neurons of the MLP: one number each, behind the activation function (and the gate)."""

    name, kind = "neuron", "neuron"

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        return tuple((len(subject.neuron_writes(layer)[0]), 1) for layer in range(subject.n_layers))


@register
class Heads(Hookpoint):
    """Heads of self-attention: the output of each, before the map that joins them. Cross-attention has none here."""

    name, kind = "head", "head_out"

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        return tuple((subject.n_heads(layer), subject.d_head(layer)) for layer in range(subject.n_layers))


class _Whole(Hookpoint):
    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        return ((1, subject.d_model),) * subject.n_layers


@register
class MLPs(_Whole):
    """The output of each layer's MLP, one component."""

    name, kind = "mlp", "mlp_out"


@register
class Attentions(_Whole):
    """The output of each layer's self-attention, one component."""

    name, kind = "attention", "attn_out"


@register
class Residuals(_Whole):
    """The residual stream behind each layer, one component: its nodes are positions."""

    name, kind = "residual", "resid_post"
