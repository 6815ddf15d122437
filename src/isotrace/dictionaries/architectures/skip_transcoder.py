"""Skip transcoder (Paulo et al. 2025): a transcoder plus a linear path x W_skip from input to output."""

from typing import ClassVar

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.registry import ARCHITECTURES


@ARCHITECTURES.named("skip_transcoder")
class SkipTranscoder(Dictionary):
    default_in, default_out = "layers.{}.mlp_in", "layers.{}.mlp_out"
    usual: ClassVar = {"skip": True}

    @classmethod
    def check(cls, config: DictionaryConfig) -> None:
        super().check(config)
        if config.window != 1 or not config.skip:
            raise DictionaryError("a skip transcoder has window 1 and skip true: use crosslayer or transcoder.")
