"""How one dictionary is shared by several processes: by tokens, or by features.

data      every process holds the whole dictionary and a slice of each batch; gradients, variances and the
          constants of the auxiliary loss are means over all slices
features  every process sees the whole batch and holds F / size features of every layer: encoder columns, decoder
          rows, optimiser state. The k largest activations are found among all processes' candidates; what the
          features write is summed. Biases of the output and skip paths are in every process, with equal values
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils import get_total_norm

from isotrace.base.errors import RunError
from isotrace.dictionaries.build import build
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.sparsity.batchtopk import BatchTopK
from isotrace.dictionaries.sparsity.rule import SparseActivations
from isotrace.training.checkpoint import load_checkpoint, save_checkpoint
from isotrace.training.world import World

Parallel = Literal["data", "features"]
FEATURE_AXIS = {"W_enc": 1, "b_enc": 0, "W_dec": 0, "mean_activation": 1, "density": 1}  # the rest is in every process


class Split:
    """One process, which holds every feature and sees every token. The subclasses change what several share."""

    def build(self, config: DictionaryConfig, seed: int) -> Dictionary:
        """This process's part of a fresh dictionary."""
        return build(config, seed)

    def tokens(self, x: Tensor) -> Tensor:
        """x `[..., tokens, d]` of this process becomes that of the batch it computes on."""
        return x

    def sum_(self, *tensors: Tensor) -> None:
        """Sums over the tokens of this process become sums over those of the batch."""

    def mean_(self, *tensors: Tensor) -> None:
        """Means over the tokens of this process become means over those of the batch."""

    def fired(self, flags: Tensor) -> Tensor:
        """Whether this process's features were active on any token of the batch."""
        return flags

    def segments(self, config: DictionaryConfig) -> list[tuple[int, int]]:
        """(start, stop) of the features between one prefix and the next, counted from this process's first."""
        ends = config.prefixes or (config.n_features,)
        return list(zip((0, *ends[:-1]), ends, strict=True))

    def chosen(self, active: SparseActivations) -> SparseActivations:
        """Of the features this process found active, those active in the whole dictionary."""
        return active

    def kept(self, values: Tensor, k: int) -> Tensor:
        """bool `[tokens, c]`: which of this process's c ≤ k candidates are among the k largest of all processes'."""
        return torch.ones_like(values, dtype=torch.bool)

    def summed(self, part: Tensor) -> Tensor:
        """Σ of what the features of every process write; a gradient goes back to each part unchanged."""
        return part

    def counts(self, flags: Tensor) -> list[int]:
        """How many features of each layer are set in `flags [n_layers, F]`, over all features."""
        return flags.sum(1).tolist()

    def reduce_(self, loss: Tensor, dictionary: Dictionary) -> Tensor:
        """The loss and the gradients become those of the batch, in place; the norm of the whole gradient."""
        gradients = [p.grad for p in dictionary.parameters() if p.grad is not None]
        self.mean_(loss, *gradients)
        return get_total_norm(gradients)

    def whole(self, dictionary: Dictionary) -> Dictionary | None:
        """The trained dictionary, None on a process that does not return it."""
        return dictionary


class TokenSplit(Split):
    """Slices of each batch, of equal length."""

    def __init__(self, world: World) -> None:
        self.world = world

    def build(self, config: DictionaryConfig, seed: int) -> Dictionary:
        dictionary = build(config, seed)
        if isinstance(dictionary.rule, BatchTopK):
            dictionary.rule.pooled = self.world.cat
        return dictionary

    def sum_(self, *tensors: Tensor) -> None:
        self.world.sum_(*tensors)

    def mean_(self, *tensors: Tensor) -> None:
        self.world.mean_(*tensors)

    def fired(self, flags: Tensor) -> Tensor:
        return self.world.any_(flags)


class FeatureSplit(Split):
    """Features r · share … (r + 1) · share − 1 of every layer are in process r.

    Raises RunError for a rule other than topk, or features that do not divide by the processes.
    """

    def __init__(self, world: World, config: DictionaryConfig) -> None:
        if config.activation != "topk":
            raise RunError(f"feature parallel supports topk, not {config.activation}: use data parallel.")
        if config.n_features % world.size:
            raise RunError(f"n_features {config.n_features} must be a multiple of the {world.size} processes.")
        self.world, self.config = world, config
        self.share = config.n_features // world.size
        self.first = world.rank * self.share

    def build(self, config: DictionaryConfig, seed: int) -> Dictionary:
        """Every process in its turn makes the whole in host memory and keeps its share, so that one whole at a time
        is there."""
        kept = None
        for rank in range(self.world.size):
            if rank == self.world.rank:
                full = build(config, seed)
                kept = type(full)(replace(config, n_features=self.share, k=min(self.k, self.share), prefixes=()))
                kept.load_state_dict({name: self._own(name, value) for name, value in full.state_dict().items()})
                del full
            self.world.wait()
        assert kept is not None
        return kept

    @property
    def k(self) -> int:
        assert self.config.k is not None
        return self.config.k

    def _own(self, name: str, value: Tensor) -> Tensor:
        axis = FEATURE_AXIS.get(name.split(".")[0])
        return value if axis is None else value.narrow(axis, self.first, self.share)

    def tokens(self, x: Tensor) -> Tensor:
        return self.world.cat(x.transpose(0, -2)).transpose(0, -2)

    def segments(self, config: DictionaryConfig) -> list[tuple[int, int]]:
        return [(start - self.first, stop - self.first) for start, stop in super().segments(self.config)]

    def chosen(self, active: SparseActivations) -> SparseActivations:
        return replace(active, values=active.values * self.kept(active.values, self.k))

    @torch.no_grad()
    def kept(self, values: Tensor, k: int) -> Tensor:
        """Equal values: the lower rank first, so that all processes decide alike."""
        width = min(k, self.share)
        candidates = pad(values, (0, width - values.shape[1]), value=-torch.inf)
        everyone = torch.cat(self.world.gather(candidates), 1)
        best = everyone.sort(dim=1, descending=True, stable=True).indices[:, :k]
        mask = torch.zeros_like(everyone, dtype=torch.bool).scatter_(1, best, True)
        return mask[:, self.world.rank * width :][:, : values.shape[1]]

    def summed(self, part: Tensor) -> Tensor:
        return _Sum.apply(part, self.world)  # type: ignore[return-value]

    def counts(self, flags: Tensor) -> list[int]:
        count = flags.sum(1)
        self.world.sum_(count)
        return count.tolist()

    def reduce_(self, loss: Tensor, dictionary: Dictionary) -> Tensor:
        """Gradients of features are complete as they are: the loss is the same everywhere. Those of what is in every
        process are taken from process 0, so that rounding cannot drive the copies apart."""
        gradients = {name: p.grad for name, p in dictionary.named_parameters() if p.grad is not None}
        own = [g for name, g in gradients.items() if name.split(".")[0] in FEATURE_AXIS]
        common = [g for name, g in gradients.items() if name.split(".")[0] not in FEATURE_AXIS]
        self.world.first_(loss, *common)
        squares = get_total_norm(own).square()
        self.world.sum_(squares)
        return (squares + get_total_norm(common).square()).sqrt()

    @torch.no_grad()
    def whole(self, dictionary: Dictionary) -> Dictionary | None:
        """On process 0, in host memory; one tensor of one process at a time is on its way."""
        if self.world.rank:
            for name, value in dictionary.state_dict().items():
                if name.split(".")[0] in FEATURE_AXIS:
                    torch.distributed.send(value.contiguous(), 0)
            return None
        full = type(dictionary)(self.config)
        places = full.state_dict()
        for name, value in dictionary.state_dict().items():
            axis = FEATURE_AXIS.get(name.split(".")[0])
            if axis is None:
                places[name].copy_(value)
                continue
            for rank in range(self.world.size):
                if rank:
                    value = torch.empty_like(value, memory_format=torch.contiguous_format)
                    torch.distributed.recv(value, rank)
                places[name].narrow(axis, rank * self.share, self.share).copy_(value)
        return full


class _Sum(torch.autograd.Function):
    """Sum over the processes; backward the identity, since all go on to compute the same loss from it (the operator g
    of Shoeybi et al. 2019, "Megatron-LM", §3)."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, world: World) -> Tensor:
        total = part.clone(memory_format=torch.contiguous_format)
        world.sum_(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        return grads[0], None


def split(world: World, parallel: Parallel, config: DictionaryConfig) -> Split:
    """How `world` shares a dictionary of `config`."""
    if world.size == 1:
        return Split()
    return TokenSplit(world) if parallel == "data" else FeatureSplit(world, config)


class Checkpoints:
    """The checkpoint at `path`, written by process 0 and read by all.

    Where features are split, each process writes its share beside it, `NAME.SLOT.rankR.pt`; the file at `path`
    then names the slot. It is replaced when all shares are there, so a kill leaves one whole set at any moment.
    Methods raise RunError on all processes if they fail on one.
    """

    def __init__(self, path: Path, settings: dict[str, Any], world: World, parallel: Parallel) -> None:
        self.path, self.settings, self.world = path, settings, world
        self.shared = parallel == "features" and world.size > 1
        self.slot = 0

    def load(self) -> dict[str, Any] | None:
        """What was saved: the state, and every trainer's under `trainers`; None if there is no checkpoint."""
        with self.world.together():
            state = load_checkpoint(self.path, self.settings)
        if len(set(self.world.all(int(state is None)))) > 1:
            raise RunError(f"only some processes see {self.path}: put it where all can read it.")
        if state is None or not self.shared:
            return state
        self.slot = state["slot"]
        with self.world.together():
            own = load_checkpoint(self.share(self.slot), self.settings)
            if own is None:
                raise RunError(f"{self.share(self.slot)} is missing: bring it back, or delete {self.path}.")
        return state | own

    def save(self, state: dict[str, Any], trainers: Sequence[dict[str, Any]]) -> None:
        kept = {"trainers": list(trainers)}
        slot = 1 - self.slot
        if self.shared:
            with self.world.together():
                save_checkpoint(self.share(slot), self.settings, kept)
            kept = {"slot": slot}
        with self.world.together():
            if self.world.rank == 0:
                save_checkpoint(self.path, self.settings, state | kept)
        if self.shared:
            self.share(self.slot).unlink(missing_ok=True)
            self.slot = slot

    def share(self, slot: int) -> Path:
        return self.path.with_name(f"{self.path.stem}.{slot}.rank{self.world.rank}.pt")


def shares_of(path: Path) -> list[Path]:
    """The files that belong to the checkpoint at `path` where features were split; gone with it when all is done."""
    return sorted(path.parent.glob(f"{path.stem}.[01].rank*.pt"))
