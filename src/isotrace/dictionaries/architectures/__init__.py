"""Architectures: what features read and write. One file each; importing this package registers them."""

from isotrace.dictionaries.architectures import crosslayer, sae, skip_transcoder, transcoder

__all__ = ["crosslayer", "sae", "skip_transcoder", "transcoder"]
