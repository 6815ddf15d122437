"""The head of a fine-tuned subject: which hidden states it reads, what it makes of them, and what its outputs are
called."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_utils import PreTrainedModel

from isotrace.base.errors import SubjectError
from isotrace.subjects.families import HeadPaths
from isotrace.subjects.heads.outputs import ONE_LABEL, Kind, Outputs

if TYPE_CHECKING:
    from isotrace.subjects.subject import Batch


class TaskHead(Outputs):
    """pool → dense → function → norm → classifier, the middle of it where `dense` is not None. Raises SubjectError for
    two outputs of one name, and for a pooling that is not known."""

    def __init__(self, model: PreTrainedModel, paths: HeadPaths, kind: Kind, source: str) -> None:
        config = model.config
        super().__init__(cast(dict[int, str], config.id2label), cast("str | None", config.problem_type), kind, source)
        self.pool = cast(str, _setting(config, paths.pool))
        if self.pool not in ("cls", "mean", "last", "token"):
            raise SubjectError(f"the head of {source} pools by {self.pool!r}, which isotrace does not know.")
        self.classifier = model.get_submodule(paths.classifier)
        self.dense = None if paths.dense is None else model.get_submodule(paths.dense)
        self.norm = None if paths.norm is None else model.get_submodule(paths.norm)
        self.function: Callable[[Tensor], Tensor] = nn.Identity()
        if paths.function is not None:
            self.function = ACT2FN[_setting(config, paths.function)]
        self.filler = cast("int | None", getattr(config, "pad_token_id", None))

    def weights(self, batch: "Batch", position: int | None = None) -> Tensor:
        """`[batch, tokens]`, each row summing to one: how much of every final hidden state is read; a head of tokens
        reads that at `position`."""
        if self.pool == "mean":
            return batch.mask / batch.mask.sum(1, keepdim=True)
        if self.pool != "last":
            place = torch.full((len(batch.ids),), cast(int, position) if self.pool == "token" else 0)
        else:  # a token that stands for padding is passed over wherever it comes from, as in training
            real = batch.mask if self.filler is None else batch.mask & (batch.ids != self.filler)
            place = (torch.arange(real.shape[1], device=real.device) * real).argmax(1)
        return nn.functional.one_hot(place.to(batch.ids.device), batch.ids.shape[1]).float()

    def pooled(self, batch: "Batch", final: Tensor, position: int | None = None) -> Tensor:
        """`[batch, d_model]` of final hidden states `[batch, tokens, d_model]`."""
        return (self.weights(batch, position).to(final)[..., None] * final).sum(1)

    def outputs(self, pooled: Tensor) -> Tensor:
        """`[..., outputs]` from what it reads `[..., d_model]`; a regression's values, else logits."""
        narrow = cast(Tensor, self.classifier.weight).dtype
        x = pooled.to(narrow)
        if self.dense is not None:
            x = self.function(self.dense(x))
        if self.norm is not None:
            x = self.norm(x)
        return self.classifier(x).to(pooled)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """`[..., outputs]`: of every class, or of every label by itself where several may hold at once."""
        return outputs.softmax(-1) if self.problem == ONE_LABEL and len(self.names) > 1 else outputs.sigmoid()

    def about(self) -> dict[str, Any]:
        """What `isotrace subjects` says of it."""
        return {"reads": self.kind, "pool": self.pool, "problem": self.problem, "labels": list(self.names)}


def _setting(config: Any, said: str) -> str:
    return getattr(config, said.removeprefix("config.")) if said.startswith("config.") else said
