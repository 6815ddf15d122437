"""The dictionary: features that read one hookpoint of each layer and write to another (METHODS §1).

    h_s = x_s W_enc^s + b_enc^s                          pre-activation, [tokens, F]
    a_s = rule(h_s)                                      activations, sparse
    ŷ_t = Σ_{t − window < s ≤ t} a_s W_dec^{s→t} + b_dec^t (+ x_t W_skip^t)

Architectures differ in the hookpoints, in the window and in how they start; sparsity rules in `rule`. Constant
normalisation of inputs and outputs is folded into the weights, so raw activations map to raw activations.
Decoders of one source lie side by side, `W_dec.{s} [F, n_targets · d_out]`, so that one gather serves all targets
(METHODS §2). In memory an encoder is the transpose of contiguous `[F, d_in]`: a feature's weights lie together.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from isotrace.base.errors import DictionaryError
from isotrace.base.progress import shortened
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.registry import RULES
from isotrace.dictionaries.sparsity.rule import Rule, SparseActivations
from isotrace.kernels import sparse_decode


class Dictionary(nn.Module):
    """Base of all architectures. `default_in`, `default_out` are the hookpoints `configure` fills in, `usual` other
    fields of the config that it fills in; `fitted`: of an architecture that has a `fit` of its own in place of steps,
    how many tokens that takes where nobody says, else 0. `folder` is where it was loaded from, with its shelf, None
    for one made in memory."""

    default_in: ClassVar[str]
    default_out: ClassVar[str]
    usual: ClassVar[Mapping[str, Any]] = {}
    fitted: ClassVar[int] = 0
    folder: Path | None = None

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__()
        self.check(config)
        self.config = config
        layers = range(config.n_layers)
        empty = torch.zeros
        self.W_enc = nn.ParameterList(empty(config.n_features, config.d_in).T for _ in layers)
        self.b_enc = nn.ParameterList(empty(config.n_features) for _ in layers)
        self.W_dec = nn.ParameterList(empty(config.n_features, len(config.targets(s)) * config.d_out) for s in layers)
        self.b_dec = nn.ParameterList(empty(config.d_out) for _ in layers)
        self.W_skip = nn.ParameterList(empty(config.d_in, config.d_out) for _ in layers if config.skip)
        self.rule: Rule = RULES[config.activation](config)
        # statistics of the training stream, needed for mean ablation and for matched controls
        self.mean_activation = nn.Buffer(torch.zeros(config.n_layers, config.n_features))
        self.density = nn.Buffer(torch.zeros(config.n_layers, config.n_features))

    def __repr__(self) -> str:
        c, place = self.config, "in memory" if self.folder is None else f"from {self.folder}"
        active = c.activation if c.k is None else f"{c.activation}, k {c.k}"
        lines = (
            f"{type(self).__name__}: {c.architecture} ({active}), {place}",
            f"{c.n_layers} layers of {c.n_features} features, {c.hookpoint_in} → {c.hookpoint_out}",
        )
        return shortened(*lines)

    @classmethod
    def check(cls, config: DictionaryConfig) -> None:
        """Raises DictionaryError for a config this architecture, or its sparsity rule, cannot have."""
        RULES[config.activation].check(config)
        if config.token_normalization != "none" and config.d_in != config.d_out:
            raise DictionaryError("token_normalization needs d_in = d_out: leave it out, or use an sae.")

    def initialise(self, generator: torch.Generator) -> None:
        """Unit-norm random encoders; decoders start at zero, so that the first steps fit them alone."""
        for weight in self.W_enc:
            weight.data.copy_(torch.randn(weight.T.shape, generator=generator).T)
            weight.data /= weight.data.norm(dim=0, keepdim=True)
        for weight in [*self.W_dec, *self.W_skip]:
            nn.init.zeros_(weight)

    def fit(self, tokens: Tensor, seed: int) -> None:
        """Set the weights from tokens `[n_layers, tokens, d_in]`, raw ones; of architectures that are `fitted`."""
        raise NotImplementedError

    def standardised(self, x: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """(encoder input, mean, deviation) of x `[..., d_in]`; 0 and 1 where tokens are not normalised."""
        if self.config.token_normalization == "none":
            return x, 0.0, 1.0
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        # ε on the way in only, as in InterProt, ProtoMech and SAELens, whose files are then the same function here
        return (x - mean) / (deviation + 1e-5), mean, deviation

    def preactivations(self, layer: int, x: Tensor) -> Tensor:
        """h `[..., F]` of inputs x `[..., d_in]` of one layer."""
        return nn.functional.linear(self.standardised(x)[0], self.W_enc[layer].T, self.b_enc[layer])

    def encode(self, layer: int, x: Tensor) -> SparseActivations:
        """Active features of every token by the inference rule; x `[..., d_in]`."""
        return self.rule.encode(layer, self.preactivations(layer, x))

    def decoder(self, source: int, target: int) -> Tensor:
        """W_dec^{source→target} `[F, d_out]`, a view."""
        slot, d = self.config.targets(source).index(target), self.config.d_out
        return self.W_dec[source][:, slot * d : (slot + 1) * d]

    def decode(self, target: int, activations: dict[int, Tensor], x: Tensor) -> Tensor:
        """ŷ of layer `target` `[..., d_out]` from dense activations `[..., F]` of each source layer and that
        layer's own input x `[..., d_in]`, which only a skip path and token normalisation read."""
        total = self.b_dec[target]
        for source, dense in activations.items():
            if target in self.config.targets(source):
                total = total + dense @ self.decoder(source, target)
        return self.finished(target, total, x)

    def finished(self, target: int, total: Tensor, x: Tensor) -> Tensor:
        """Skip path and token normalisation, after decoding."""
        seen, mean, deviation = self.standardised(x)
        return (total + seen @ self.W_skip[target] if self.config.skip else total) * deviation + mean

    def finish_all(self, decoded: Tensor, x: Tensor) -> Tensor:
        """`finished` for every layer: decoded `[n_layers, tokens, d_out]`, inputs `[n_layers, tokens, d_in]`."""
        if not self.config.skip and self.config.token_normalization == "none":
            return decoded
        return torch.stack([self.finished(t, decoded[t], x[t]) for t in range(self.config.n_layers)])

    def decode_sparse(self, active: list[SparseActivations]) -> Tensor:
        """Σ a W_dec `[n_layers, tokens, d_out]`, no bias, from the activations of every layer `[tokens, k]`."""
        values, indices = [a.values for a in active], [a.indices for a in active]
        return sparse_decode(values, indices, [*self.W_dec], self.config.d_out, self.config.window)

    def written(self, active: list[SparseActivations], x: Tensor) -> Tensor:
        """ŷ `[n_layers, tokens, d_out]` from every layer's activations and inputs x `[n_layers, tokens, d_in]`."""
        return self.finish_all(self.decode_sparse(active) + self.biases, x)

    @property
    def biases(self) -> Tensor:
        """b_dec of every layer `[n_layers, 1, d_out]`."""
        return torch.stack([*self.b_dec])[:, None]

    def write_vectors(self, source: int, indices: Tensor) -> Tensor:
        """Decoder rows `[..., n_targets, d_out]` of the given features of layer `source`."""
        return self.W_dec[source][indices].unflatten(-1, (-1, self.config.d_out))

    def forward(self, x: Tensor) -> Tensor:
        """ŷ `[n_layers, tokens, d_out]` of true inputs `[n_layers, tokens, d_in]` (teacher-forced)."""
        return self.written([self.encode(layer, tokens) for layer, tokens in enumerate(x)], x)

    @torch.no_grad()
    def fold(self, mean_in: Tensor, scale_in: Tensor, mean_out: Tensor, scale_out: Tensor) -> None:
        """Move constant normalisation into the weights: what mapped (x − mean_in) / scale_in to
        (y − mean_out) / scale_out maps x to y. Means `[n_layers, d]`, scales `[n_layers]`. Activations stay the
        same."""
        for layer in range(self.config.n_layers):
            self.W_enc[layer] /= scale_in[layer]
            self.b_enc[layer] -= mean_in[layer] @ self.W_enc[layer]
            for target in self.config.targets(layer):
                self.decoder(layer, target).mul_(scale_out[target])
            if self.config.skip:
                self.W_skip[layer] /= scale_in[layer]
                self.b_dec[layer] -= mean_in[layer] @ self.W_skip[layer]
                self.W_skip[layer] *= scale_out[layer]
            self.b_dec[layer].mul_(scale_out[layer]).add_(mean_out[layer])

    def decoder_norms(self) -> Tensor:
        """`[n_layers, F]`: a feature's norm is that of its whole row, over all its targets."""
        return torch.stack([w.norm(dim=1) for w in self.W_dec])

    def content(self) -> Any:
        """What its `identity` is of: settings, weights and statistics as they are in memory."""
        settings = {f.name: getattr(self.config, f.name) for f in fields(self.config)}
        changed = {f.name: settings[f.name] for f in fields(self.config) if settings[f.name] not in (f.default, {})}
        return ["dictionary", changed, dict(self.state_dict())]

    @torch.no_grad()
    def fingerprint(self, dtype: torch.dtype = torch.float32) -> list[float]:
        """Reconstruction of a fixed probe batch in float64 by the weights as rounded to `dtype`, reduced to one number
        per layer: catches a changed decoder layout or activation rule that a checksum of the file cannot see. One
        matrix at a time becomes float64, so that it takes little memory beside the dictionary's own."""
        config, generator = self.config, torch.Generator().manual_seed(0)
        probe = torch.randn(config.n_layers, 16, config.d_in, generator=generator, dtype=torch.float32).double()
        total = torch.zeros(config.n_layers, 16, config.d_out, dtype=torch.float64)
        rule = [*self.rule.parameters(), *self.rule.buffers()]
        for source in range(config.n_layers):
            with _in_double(self, [self.W_enc[source], self.b_enc[source], *rule], dtype):
                dense = self.encode(source, probe[source]).dense(config.n_features)
            for target in config.targets(source):
                total[target] += dense @ self.decoder(source, target).to("cpu", dtype).double()
        with _in_double(self, [*self.b_dec, *self.W_skip], dtype):
            output = self.finish_all(total + self.biases, probe)
        result = output.square().mean((1, 2)).sqrt().tolist()
        return [float(f"{value:.6g}") for value in result]


@contextmanager
def _in_double(owner: nn.Module, tensors: Sequence[Tensor], dtype: torch.dtype) -> Iterator[None]:
    """`tensors` of `owner` are their values rounded to `dtype`, as float64 on the CPU, within the block."""
    asked = {id(tensor) for tensor in tensors}
    stores: list[dict[str, Any]] = [own for part in owner.modules() for own in (part._parameters, part._buffers)]
    kept = [(store, name, own) for store in stores for name, own in store.items() if id(own) in asked]
    try:
        for store, name, own in kept:
            store[name] = own.detach().to("cpu", dtype).double()
        yield
    finally:
        for store, name, own in kept:
            store[name] = own
