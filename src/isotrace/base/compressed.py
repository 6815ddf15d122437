"""Gzipped files in bounded memory: a few kilobytes can stand for gigabytes."""

import gzip
import io
import zlib

from isotrace.base.errors import InputError

ALWAYS_BYTES = 2**28  # may be unpacked, however small the file is
MOST_TIMES = 100  # its own size is what a larger file may unpack to; tables and structures grow 3 to 30 times


def unzipped(raw: bytes, name: str) -> bytes:
    """What the gzip file `name`, read as `raw`, holds. Raises InputError where that is too much to be meant, OSError
    where it is damaged."""
    limit = max(ALWAYS_BYTES, MOST_TIMES * len(raw))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            found = file.read(limit + 1)
    except (EOFError, zlib.error) as error:
        raise OSError(str(error)) from None
    if len(found) > limit:
        raise InputError(f"{name} unpacks to more than {limit:,} bytes: if that is meant, give it unpacked.")
    return found
