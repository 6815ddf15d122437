"""How fast the feature atlas opens: a synthetic one of 10,000 features, in headless Chromium.

Molecules and their pictures are real (those of the bundled dictionary's examples, and other spellings of them),
numbers are drawn at random; a feature fires on one sort of token. Measured from the browser's own navigationStart:
`table` until both tables are sorted and answer to the keyboard, `painted` until the first rows were on the screen.
`card` is from the click on a row until its first example is drawn. Needs playwright and a Chromium on the path.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from importlib.resources import files
from pathlib import Path
from time import perf_counter

import numpy as np
import polars as pl
from rdkit import Chem

from isotrace.domains.molecule.domain import MOLECULE
from isotrace.domains.molecule.smiles import lex
from isotrace.domains.molecule.spelling import spellings
from isotrace.domains.molecule.tokens import parse
from isotrace.report.atlas.atlas import AtlasTables, atlas_page

LAYERS, CONCEPTS = 6, 500
SOURCES = ("dictionary", "neurons", "untrained", "random", "token_identity")
KINDS = ("token", "token", "token", "token", "class", "value")


def molecules(n: int) -> list[str]:
    """`n` texts: the bundled examples that RDKit reads, then other spellings of them."""
    table = pl.read_parquet(
        str(files("isotrace") / "assets/molm-clt/about/names/examples.parquet"), columns=["sequence"]
    )
    found = []
    for smiles in table["sequence"].unique(maintain_order=True):
        if len(found) == n:
            break
        if len(smiles) < 90 and Chem.MolFromSmiles(smiles) is not None:
            found.append(smiles)
    for smiles in found[: n - len(found)]:
        found += [spelling.smiles for spelling in spellings(parse(smiles), 1, seed=1)]
    return found


def picture(smiles: str) -> dict:
    """With one token per lexeme, and a special one before and after."""
    lexemes = lex(smiles)
    tokens = ["<cls>", *(x.text for x in lexemes), "<eos>"]
    offsets = [(0, 0), *((x.start, x.end) for x in lexemes), (len(smiles), len(smiles))]
    return MOLECULE.picture(MOLECULE.read(smiles, tokens, offsets))


def tables(n_features: int, pictures: list[dict], seed: int = 0) -> AtlasTables:
    rng = np.random.default_rng(seed)
    layer = np.sort(rng.integers(0, LAYERS, n_features)).astype(np.int32)
    feature = np.concatenate([np.arange(k) for k in np.bincount(layer, minlength=LAYERS)])
    names = [f"concept number {i}" for i in range(CONCEPTS)]
    kinds = [KINDS[i % len(KINDS)] for i in range(CONCEPTS)]
    concepts = pl.DataFrame(
        {"concept": names, "group": [f"group {i % 23}" for i in range(CONCEPTS)], "kind": kinds}
        | {"n_positive": rng.integers(20, 90_000, CONCEPTS), "n_instances": rng.integers(20, 9_000, CONCEPTS)}
        | {"reason": [None] * CONCEPTS},
        schema_overrides={"reason": pl.String},
    )
    found = _features(layer, feature, names, rng)
    examples = _examples(layer, feature, pictures, rng)
    return AtlasTables(
        features=found,
        associations=_associations(found, names, rng),
        examples=examples,
        sequences=pl.DataFrame(
            {"index": range(len(pictures)), "name": [f"molecule {i}" for i in range(len(pictures))]}
            | {"sequence": [p["text"] for p in pictures], "group": "scaffold", "side": "held-out"}
        ),
        concepts=concepts,
        coverage=pl.DataFrame(
            [
                {"source": s, "layer": k, "n_features": n_features // LAYERS, "n_alive": n_features // 8}
                | {"n_labelled": n_features // 20, "concepts_f1_50": 20 + 3 * k, "concepts_f1_80": 8 + k}
                for s in SOURCES
                for k in (range(LAYERS) if s != "token_identity" else [-1])
            ]
        ),
    )


def _features(layer, feature, names, rng) -> pl.DataFrame:
    n = len(layer)
    f1 = np.where(rng.random(n) < 0.8, rng.beta(2, 3, n), np.nan)
    chosen = [names[i] for i in rng.zipf(1.4, n) % len(names)]
    explained = f1 > 0.5
    top = rng.gamma(2, 1.5, n)
    tokens = np.asarray(["C", "c", "N", "O", "(", ")", "1", "=O", "[nH]", "<eos>"])
    words = [list(tokens[rng.permutation(10)[:5]]) for _ in range(n)]
    return pl.DataFrame(
        {"layer": layer, "feature": feature, "label": np.where(explained, chosen, "unexplained")}
        | {"explanation": [None] * n, "concept": [c if x == x else None for c, x in zip(chosen, f1, strict=True)]}
        | {"f1": f1, "f1_ci_low": f1 * 0.93, "f1_ci_high": 1 - (1 - f1) * 0.93, "null_f1": f1 * rng.random(n) * 0.5}
        | {"q": np.where(np.isnan(f1), np.nan, rng.beta(0.2, 2, n))}
        | {"reason": [None if x == x else "active on too few selection tokens" for x in f1]}
        | {"density": rng.beta(1, 80, n), "max_activation": top, "mean_activation": top * 0.3}
        | {"histogram": [(4e4 * np.exp(-np.arange(20) * s)).astype(int).tolist() for s in rng.uniform(0.1, 0.6, n)]}
        | {"moran_i": rng.uniform(-0.2, 0.9, n), "moran_null": rng.uniform(-0.05, 0.05, n)}
        | {"stability": rng.random(n), "stability_null": rng.random(n) * 0.1, "promoted": words, "suppressed": words}
        | {"promoted_by": np.sort(rng.gamma(2, 0.3, (n, 5)))[:, ::-1].tolist()}
        | {"suppressed_by": np.sort(-rng.gamma(2, 0.3, (n, 5))).tolist()},
        schema_overrides={"explanation": pl.String},
    )  # fmt: skip


def _associations(features, names, rng, per_feature: int = 6) -> pl.DataFrame:
    layer, feature = features["layer"].to_numpy(), features["feature"].to_numpy()
    own = len(layer) * per_feature
    n = own + (len(SOURCES) - 1) * len(names)
    source = ["dictionary"] * own + [s for s in SOURCES[1:] for _ in names]
    f1 = rng.beta(2, 3, n)
    concept = np.concatenate([rng.integers(0, len(names), own), np.tile(np.arange(len(names)), len(SOURCES) - 1)])
    best = np.arange(0, own, per_feature)[features["f1"].is_not_nan().to_numpy()]
    explained = features.filter(pl.col("f1").is_not_nan())
    concept[best], f1[best] = [names.index(c) for c in explained["concept"]], explained["f1"]
    rest = n - own
    scores = {
        k: f1 * rng.uniform(0.9, 1, n)
        for k in ("f1_any", "f1_full", "f1_interplm", "f1_intermol", "f1_selection", "precision", "recall", "auroc")
    }
    frame = pl.DataFrame(
        {"source": source}
        | {"layer": np.r_[np.repeat(layer, per_feature), np.repeat(np.int32([0, 0, 0, -1]), len(names))]}
        | {"feature": np.r_[np.repeat(feature, per_feature), rng.integers(0, 2000, rest)]}
        | {"concept": [names[i] for i in concept], "threshold": rng.gamma(1, 0.5, n).astype(np.float32)}
        | {k: rng.integers(20, 50_000, n) for k in ("n_fired", "n_positive", "n_instances")}
        | {"f1": f1, "f1_ci_low": f1 * 0.95, "f1_ci_high": 1 - (1 - f1) * 0.95, **scores}
        | {"auroc_ci_low": f1 * 0.85, "auroc_ci_high": 1 - (1 - f1) * 0.95, "odds_ratio": rng.gamma(1, 20, n)}
        | {"spearman": rng.uniform(-1, 1, n), "pooling": ["max"] * n}
        | {"p": rng.beta(0.3, 3, n), "q": rng.beta(0.4, 3, n)}
        | {"feature_rank": np.r_[np.tile(np.arange(1, per_feature + 1), len(layer)), np.ones(rest, int)]}
    )  # fmt: skip
    return frame.with_columns(concept_rank=pl.col("f1").rank("ordinal", descending=True).over("source", "concept"))


def _examples(layer, feature, pictures, rng) -> pl.DataFrame:
    sorts: dict[str, list[tuple[int, list[int]]]] = {}
    for index, drawn in enumerate(pictures):
        texts = np.asarray([text for text, _ in drawn["tokens"]])
        for text in set(texts.tolist()):
            sorts.setdefault(text, []).append((index, np.flatnonzero(texts == text).tolist()))
    common = sorted(sorts, key=lambda text: -len(sorts[text]))[:24]
    rows = []
    for where in zip(layer.tolist(), feature.tolist(), strict=True):
        found = sorts[common[rng.integers(len(common))]]
        for k, group in enumerate(["top"] * 4 + ["middle"] * 2 + ["near-miss"] * 2):
            index, positions = found[rng.integers(len(found))]
            values = np.zeros(0) if k == 7 else np.sort(rng.gamma(2, 2 / (k + 1), len(positions)))[::-1]
            rows.append((*where, group, index, float(values.max(initial=0)), positions[: len(values)], values.tolist()))
    schema = {"layer": pl.Int32, "feature": pl.Int64, "group": pl.String, "index": pl.Int64, "activation": pl.Float32}
    return pl.DataFrame(
        rows, schema=schema | {"positions": pl.List(pl.Int16), "values": pl.List(pl.Float32)}, orient="row"
    )


def summary(n_features: int, n_sequences: int) -> dict:
    found = {
        s: {"n_features": n_features, "n_alive": n_features * 3 // 4, "n_labelled": n_features // (4 + 3 * i)}
        | {"concepts_f1_50": 96 // (1 + i), "concepts_f1_50_ci": [88 // (1 + i), 104 // (1 + i)]}
        | {"concepts_f1_80": 41 // (1 + i), "concepts_f1_80_ci": [35 // (1 + i), 46 // (1 + i)], "reason": None}
        for i, s in enumerate(SOURCES)
    }
    return {"subject": "synthetic", "dictionary": "synthetic", "n_features": n_features, "n_concepts": CONCEPTS} | {
        "n_token_concepts": CONCEPTS,
        "n_tokens": 40 * n_sequences, "n_sequences": n_sequences, "n_selection": n_sequences // 2,
        "n_permutations": 1000, "n_rejected": 0, "seconds": 1.0, "sources": found, "warnings": [],
    }  # fmt: skip


def opened(browser, file: Path) -> dict[str, float]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(file.as_uri(), wait_until="commit")
    page.wait_for_selector("#feature-grid [data-row]")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")
    marks = page.evaluate("[performance.getEntriesByName('usable')[0].startTime, performance.now()]")
    started = perf_counter()
    page.click("#feature-grid [data-row] >> nth=3")
    page.locator("#card .example").first.scroll_into_view_if_needed()
    page.wait_for_selector("#card .example svg.graph")
    card = perf_counter() - started
    page.close()
    return {"table_s": marks[0] / 1000, "painted_s": marks[1] / 1000, "card_s": card}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=10_000)
    parser.add_argument("--pictures", type=int, default=3_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="write the page here")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        parser.exit(0, "left out: playwright is not installed (pip install playwright)\n")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        parser.exit(0, "left out: no Chromium on the path\n")
    pictures = [picture(smiles) for smiles in molecules(args.pictures)]
    made = tables(args.features, pictures)
    started = perf_counter()
    html = atlas_page(made, title="Synthetic atlas", summary=summary(args.features, len(pictures)), pictures=pictures)
    row = {"features": args.features, "examples": made.examples.height, "pictures": made.examples["index"].n_unique()}
    row |= {"write_s": perf_counter() - started, "megabytes": len(html.encode()) / 1e6}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = args.keep or Path(folder) / "atlas.html"
        file.write_text(html, encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        found = [opened(browser, file) for _ in range(args.rounds)]
        browser.close()
    for key in found[0]:
        values = [f[key] for f in found]
        row |= {key: statistics.median(values), f"{key[:-2]}_min_s": min(values), f"{key[:-2]}_max_s": max(values)}
    if args.json:
        print(json.dumps(row))
        return
    print(f"{row['features']:,} features, {row['examples']:,} examples, {row['pictures']:,} pictures: "
          f"{row['megabytes']:.1f} MB, written in {row['write_s']:.1f} s")  # fmt: skip
    for key, words in (("table", "tables usable"), ("painted", "first rows on the screen"), ("card", "click to card")):
        print(f"{words:>25} {row[f'{key}_s']:.2f} s ({row[f'{key}_min_s']:.2f}–{row[f'{key}_max_s']:.2f})")


if __name__ == "__main__":
    main()
