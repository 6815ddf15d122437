"""Sparse autoencoder: features read and write one hookpoint (Bricken et al. 2023; Gao et al. 2024)."""

import torch

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.registry import ARCHITECTURES


@ARCHITECTURES.named("sae")
class SparseAutoencoder(Dictionary):
    default_in, default_out = "layers.{}.mlp_out", "layers.{}.mlp_out"

    @classmethod
    def check(cls, config: DictionaryConfig) -> None:
        super().check(config)
        if config.window != 1 or config.skip:
            raise DictionaryError("a sparse autoencoder has window 1 and no skip: use crosslayer or skip_transcoder.")
        if config.hookpoint_in != config.hookpoint_out or config.d_in != config.d_out:
            raise DictionaryError("a sparse autoencoder writes where it reads: use a transcoder for two hookpoints.")

    def initialise(self, generator: torch.Generator) -> None:
        """Decoders start as the transposed encoders (Gao et al. 2024, §2.4)."""
        super().initialise(generator)
        for decoder, encoder in zip(self.W_dec, self.W_enc, strict=True):
            decoder.data.copy_(encoder.data.T)
