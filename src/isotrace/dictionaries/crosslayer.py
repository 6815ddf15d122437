"""Cross-layer transcoder (METHODS §1; Ameisen et al. 2025, "Circuit tracing").

    h_s = x_s W_enc^s + b_enc^s          pre-activation, [tokens, F]
    a_s = the k largest entries of ReLU(h_s), the rest zero
    m̂_t = Σ_{t − window < s ≤ t} a_s W_dec^{s→t} + b_dec^t

`window = n_layers` is the full CLT, `window = 1` a per-layer transcoder. Normalisation is folded into the
weights, so raw MLP inputs map to raw MLP outputs. Decoders of one source lie side by side,
`W_dec.{s} [F, n_targets · d_out]`, so that one gather serves all targets (METHODS §2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.registry import register
from isotrace.kernels.topk import topk


@dataclass(frozen=True)
class SparseActivations:
    """The k active features per token: `indices [..., k]` int64, `values [..., k]`; unused slots have value 0."""

    indices: Tensor
    values: Tensor

    def dense(self, n_features: int) -> Tensor:
        """`[..., F]`, zero where inactive."""
        out = self.values.new_zeros(*self.values.shape[:-1], n_features)
        return out.scatter_add(-1, self.indices, self.values)


@register("crosslayer")
class CrossLayerTranscoder(nn.Module):
    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__()
        self.config = config
        layers = range(config.n_layers)
        self.W_enc = nn.ParameterList(torch.empty(config.d_in, config.n_features) for _ in layers)
        self.b_enc = nn.ParameterList(torch.zeros(config.n_features) for _ in layers)
        self.W_dec = nn.ParameterList(
            torch.empty(config.n_features, len(config.targets(s)) * config.d_out) for s in layers
        )
        self.b_dec = nn.ParameterList(torch.zeros(config.d_out) for _ in layers)
        # statistics of the training stream, needed for mean ablation and for matched controls
        self.mean_activation = nn.Buffer(torch.zeros(config.n_layers, config.n_features))
        self.density = nn.Buffer(torch.zeros(config.n_layers, config.n_features))

    def preactivations(self, layer: int, x: Tensor) -> Tensor:
        """h `[..., F]` of MLP inputs x `[..., d_in]`."""
        return torch.nn.functional.linear(x, self.W_enc[layer].T, self.b_enc[layer])

    def encode(self, layer: int, x: Tensor) -> SparseActivations:
        """The k largest positive pre-activations of every token; x `[..., d_in]`."""
        values, indices = topk(self.preactivations(layer, x), self.config.k)
        return SparseActivations(indices, values.relu())

    def decoder(self, source: int, target: int) -> Tensor:
        """W_dec^{source→target} `[F, d_out]`, a view."""
        slot, d = self.config.targets(source).index(target), self.config.d_out
        return self.W_dec[source][:, slot * d : (slot + 1) * d]

    def decode(self, target: int, activations: dict[int, Tensor]) -> Tensor:
        """m̂ of layer `target` `[..., d_out]` from dense activations `[..., F]` of each source layer."""
        total = self.b_dec[target]
        for source, dense in activations.items():
            if target in self.config.targets(source):
                total = total + dense @ self.decoder(source, target)
        return total

    def decode_all(self, dense: list[Tensor]) -> Tensor:
        """m̂ `[n_layers, tokens, d_out]` from dense activations `[tokens, F]` of every layer: one product per
        source serves all its targets."""
        outputs = [bias.expand(len(dense[0]), -1) for bias in self.b_dec]
        for source, activations in enumerate(dense):
            parts = (activations @ self.W_dec[source]).split(self.config.d_out, dim=-1)
            for target, part in zip(self.config.targets(source), parts, strict=True):
                outputs[target] = outputs[target] + part
        return torch.stack(outputs)

    def write_vectors(self, source: int, indices: Tensor) -> Tensor:
        """Decoder rows `[..., n_targets, d_out]` of the given features of layer `source`."""
        rows = self.W_dec[source][indices]
        return rows.unflatten(-1, (-1, self.config.d_out))

    def forward(self, mlp_in: Tensor) -> Tensor:
        """m̂ `[n_layers, tokens, d_out]` of true MLP inputs `[n_layers, tokens, d_in]` (teacher-forced)."""
        features = self.config.n_features
        return self.decode_all([self.encode(layer, x).dense(features) for layer, x in enumerate(mlp_in)])

    def decoder_norms(self) -> Tensor:
        """`[n_layers, F]`: a feature's norm is that of its whole row, over all its targets."""
        return torch.stack([w.norm(dim=1) for w in self.W_dec])

    @torch.no_grad()
    def fingerprint(self) -> list[float]:
        """Reconstruction of a fixed probe batch, reduced to one number per layer: catches a changed decoder
        layout or activation rule that a checksum of the file cannot see."""
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(self.config.n_layers, 16, self.config.d_in, generator=generator, dtype=torch.float32)
        output = self.double()(probe.double())
        result = output.square().mean((1, 2)).sqrt().tolist()
        self.float()
        return [float(f"{value:.6g}") for value in result]
