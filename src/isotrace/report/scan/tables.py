"""What a scan says variant by variant, site by site and of designs, as frames."""

import numpy as np
import polars as pl

from isotrace.domains.substitutions import RESIDUES
from isotrace.probing.scan import LEAST, Scanned

DESIGNS = {
    "index": pl.Int64, "name": pl.String, "mutation": pl.String, "n_mutations": pl.Int64, "predicted": pl.Float64,
    "place": pl.Float64, "place_like": pl.Float64, "untrained": pl.Float64, "blosum62": pl.Float64,
    "measured": pl.Float64, "new_sites": pl.Int64,
}  # fmt: skip


def variants(found: Scanned) -> pl.DataFrame:
    """`index` of the first row; `mutation` as the file counts, `sites` in the sequence, by commas; `n` rows, whose mean
    is `measured`, `sd` their standard deviation."""
    rows = []
    for variant in found.scan.variants:
        spread = float(np.std(variant.effects, ddof=1)) if len(variant.effects) > 1 else None
        rows.append(
            {"index": variant.index, "mutation": variant.name, "sites": ",".join(map(str, variant.sites)),
             "n_mutations": len(variant.changes), "n": len(variant.effects), "measured": variant.effect, "sd": spread}
        )  # fmt: skip
    frame = pl.DataFrame(rows, schema_overrides={"sd": pl.Float64}, infer_schema_length=None)
    names = {"subject": "predicted"}
    columns = [pl.Series(names.get(source, source), values) for source, values in found.predicted.items()]
    return frame.with_columns(columns).sort("index")


def site_map(found: Scanned) -> pl.DataFrame:
    """A row per site and residue, single mutations: `site` as the file counts, `position` in the sequence. Of a causal
    subject, and where the sequence has none of the twenty, only what was measured is predicted."""
    scan, single = found.scan, {}
    for variant, value in zip(scan.variants, found.predicted["subject"], strict=True):
        if len(variant.changes) == 1:
            single[variant.sites[0], variant.changes[0].after] = (variant.effect, len(variant.effects), float(value))
    rows = []
    for position, wild in enumerate(scan.wild_type, start=1):
        for place, residue in enumerate(RESIDUES):
            measured, n, predicted = single.get((position, residue), (None, 0, None))
            if found.every is not None:
                every = float(found.every[position - 1, place])
                predicted = every if np.isfinite(every) else None
            rows.append((position - scan.offset, position, wild, residue, predicted, measured, n))
    kinds = (pl.Int64, pl.Int64, pl.String, pl.String, pl.Float64, pl.Float64, pl.Int64)
    names = ("site", "position", "wild_type", "residue", "predicted", "measured", "n")
    return pl.DataFrame(rows, schema=dict(zip(names, kinds, strict=True)), orient="row")


def designs_frame(found: Scanned) -> pl.DataFrame:
    """A row per design, those that the subject thinks best first. `mutation` as the scan's file counts. `place`: among
    what the subject predicts of the measured variants, 0 for below all and 1 for above all; `place_like`: among those
    of as many mutations, None where they are fewer than LEAST. `measured`: of the same variant, None where nobody
    measured it; `new_sites`: of its sites, those of no measured variant."""
    own, scan = found.predicted["subject"], found.scan
    sizes = np.asarray([len(variant.changes) for variant in scan.variants])
    measured = {variant.changes: variant.effect for variant in scan.variants}
    sites, rows = {site for variant in scan.variants for site in variant.sites}, []
    for i, design in enumerate(found.designs):
        said = {source: float(values[i]) for source, values in found.of_designs.items()}
        like = own[sizes == len(design.changes)]
        rows.append(
            {"index": design.index, "name": design.name, "mutation": design.mutation,
             "n_mutations": len(design.changes), "predicted": said["subject"], "place": _place(said["subject"], own),
             "place_like": _place(said["subject"], like) if len(like) >= LEAST else None,
             "untrained": said["untrained"], "blosum62": said["blosum62"], "measured": measured.get(design.changes),
             "new_sites": sum(one.site not in sites for one in design.changes)}
        )  # fmt: skip
    return pl.DataFrame(rows, schema=DESIGNS).sort("predicted", descending=True, maintain_order=True)


def _place(value: float, among: np.ndarray) -> float:
    return float((among < value).mean() + (among == value).mean() / 2)
