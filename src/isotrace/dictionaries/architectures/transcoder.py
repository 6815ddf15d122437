"""Transcoder (Dunefsky et al. 2024): features read a module's input and write its output, layer by layer."""

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.registry import ARCHITECTURES


@ARCHITECTURES.named("transcoder")
class Transcoder(Dictionary):
    default_in, default_out = "layers.{}.mlp_in", "layers.{}.mlp_out"

    @classmethod
    def check(cls, config: DictionaryConfig) -> None:
        super().check(config)
        if config.window != 1 or config.skip:
            raise DictionaryError("a transcoder has window 1 and no skip: use crosslayer or skip_transcoder.")
