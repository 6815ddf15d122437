"""How sequences come out of a subject, edited or not: one generator a file, by name in `DECODERS`."""

from isotrace.steering.decoding.decoder import DECODERS, Decoder
from isotrace.steering.decoding.run import Design, Designs, EditByRound

__all__ = ["DECODERS", "Decoder", "Design", "Designs", "EditByRound"]
