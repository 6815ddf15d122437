"""Write docs/transfer-matrix.md from a run of `isotrace transfer` (see build_matrix.py).

python scripts/write_matrix.py WORK/out
"""

import argparse
from pathlib import Path
from typing import Any

from isotrace.base.result import Result, load
from isotrace.report.page import interval, number

PAGE = Path(__file__).parents[1] / "docs" / "transfer-matrix.md"


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines) + "\n"


def estimate(row: dict[str, Any] | None) -> str:
    return "" if row is None or row["value"] is None else f"{number(row['value'])} {interval(row['ci'])}"


def outcomes(found: Result) -> str:
    """Means over seeds, a row per checkpoint, the best mean rank first."""
    frame, tasks = found.tables["outcomes"], found.summary["tasks"]
    method = found.summary["method"]
    rows, names = [], [*found.summary["checkpoints"], "forest"]
    rank = {**found.summary["mean_rank"], "forest": -1.0}
    for name in sorted(names, key=lambda name: -rank[name]):
        own = frame.filter(checkpoint=name, method="forest" if name == "forest" else method)
        means = [own.filter(task=t["name"], metric=t["metric"])["value"].mean() for t in tasks]
        rows.append([name, number(rank[name]) if name != "forest" else "", *(number(value) for value in means)])
    return table(["checkpoint", "mean rank", *(t["name"] for t in tasks)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    found = load(parser.parse_args().run)
    n = found.summary["n"]
    tasks = [
        [t["name"], t["metric"], t["test_rows"], "–".join(map(number, t["range"])), t["best"], number(t["forest"]),
         f"{number(t['ceiling']['value'])} {interval(t['ceiling']['ci'])}" + (", apart" if t["apart"] else "")]
        for t in found.summary["tasks"]
    ]  # fmt: skip
    predictors = [
        [
            p["name"],
            *(estimate(p[key]) for key in ("spearman", "share", "regret_1", "beyond_probe")),
            p["verdict"].partition(":")[0],
        ]
        for p in found.summary["predictors"]
    ]
    size = f"{n['checkpoints']} checkpoints in {n['families']} families, {n['tasks']} tasks in {n['groups']} groups"
    judged = ["predictor", "Spearman", "share of the ceiling", "regret", "Spearman beyond the probe's", "verdict"]
    told = ["task", "metric", "test molecules", "worst–best", "best checkpoint", "forest", "ceiling"]
    PAGE.write_text(f"""# The matrix

{size}, {n["labels"]} labels, {n["seeds"]} seeds, `{found.summary["method"]}`; at most {n["test"]} test molecules.
Made by `scripts/build_matrix.py`, `isotrace transfer` and `scripts/write_matrix.py`; what the columns mean stands in
[Which checkpoint transfers](transfer.md). Brackets are 95 % intervals over groups of tasks.

{found.summary["verdict"]}

## Predictors

{table(judged, predictors)}
## Tasks

"apart": checkpoints differ by less than the noise, and the task counts in no mean.

{table(told, tasks)}
## Outcomes

Means over seeds; the rank is 1 for the best of all on every task. `forest`: on fingerprints.

{outcomes(found)}""")
    print(PAGE)


if __name__ == "__main__":
    main()
