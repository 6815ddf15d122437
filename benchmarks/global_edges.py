"""Edges between features over many inputs: how many lie above their null, beside a dictionary whose decoder rows stand
in another order, and the time it takes.

    python benchmarks/global_edges.py --data tests/data/heldout.smi --limit 200 [--heads] [--orders 3]

`above`: of the pairs active together. `chance`: of the features, the share whose strongest edge has p up to 0.05 (the
first `--features` of layers 1, 3 and 5; same token). Seconds are those of the processor.
"""

import argparse
import time

import polars as pl
import torch

import isotrace
from isotrace.attribution.weights.global_edges import all_blocks, blocks, permuted
from isotrace.attribution.weights.record import Recordings
from isotrace.attribution.weights.segments import Segments
from isotrace.dictionaries.features import batches_of
from isotrace.verbs.corpus import usable


def above(recordings: Recordings, heads: bool) -> float:
    pairs = kept = 0
    for block in all_blocks(recordings, through_heads=heads):
        pairs += int(block.together.sum())
        kept += int((block.kept & block.together).sum())
    return kept / pairs


def chance(recordings: Recordings, n: int) -> float:
    found = []
    for slot in (1, 3, 5):
        features = (recordings.density[slot] > 0).nonzero()[:n, 0]
        best = [(0.0, 1.0)] * len(features)
        for block in blocks(recordings, slot, features, [()]):
            values, rows = block.value.abs().nan_to_num().max(0)
            for k, (value, i) in enumerate(zip(values.tolist(), rows.tolist(), strict=True)):
                if value > best[k][0]:
                    best[k] = value, block.chance(i, k)
        found += [p for _, p in best]
    return sum(p <= 0.05 for p in found) / len(found)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--data", required=True)
    asked.add_argument("--limit", type=int, default=200)
    asked.add_argument("--heads", action="store_true")
    asked.add_argument("--orders", type=int, default=3)
    asked.add_argument("--features", type=int, default=150)
    given = asked.parse_args()
    torch.set_num_threads(1)
    subject = isotrace.load_subject("bundled:molm")
    texts, _ = usable(subject, given.data, None, given.limit)
    rows, density = [], None
    for order in range(1 + given.orders):
        dictionary = isotrace.load_dictionary("bundled:molm-clt", subject)
        if density is not None:
            for slot, own in enumerate(density):
                dictionary.W_dec[slot].data = dictionary.W_dec[slot][permuted(own, 1, (order, 7, slot))[0]]
        start = time.process_time()
        recordings = Recordings(Segments(subject, dictionary), batches_of(subject, texts))
        recorded, density = time.process_time() - start, recordings.density
        start = time.process_time()
        share = above(recordings, given.heads)
        row = {"decoders": f"order {order}" if order else "as they are", "above": share, "record s": recorded}
        rows.append(row | {"edges s": time.process_time() - start, "chance": chance(recordings, given.features)})
    print(pl.DataFrame(rows))


if __name__ == "__main__":
    main()
