import gzip
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from isotrace.base.errors import InputError
from isotrace.datasets.concept_files import label_columns, read_concept_file
from isotrace.datasets.inputs import read_inputs
from isotrace.datasets.label_cells import MAX_VALUES
from isotrace.domains.domain import Reading

PATTERNS = "name,group,kind,pattern\n"


class Chain:
    """Residues in a row; `|` in a text is syntax. Tokens are given by their lengths in residues."""

    element = "residue"

    @staticmethod
    def bonds(reading: Reading) -> np.ndarray:
        return np.stack([np.arange(reading.n_elements - 1), np.arange(1, reading.n_elements)], axis=1)

    @staticmethod
    def match(kind: str, pattern: str, reading: Reading) -> list[tuple[int, ...]]:
        if kind not in ("regex", "motif") or pattern == "?":
            raise InputError(f"no kind {kind}" if pattern != "?" else "no motif")
        return [tuple(range(*m.span())) for m in re.finditer(pattern, reading.text)]


class Branched(Chain):
    """A star: every element is bonded to element 0 only."""

    element = "atom"

    @staticmethod
    def bonds(reading: Reading) -> np.ndarray:
        return np.stack([np.zeros(reading.n_elements - 1, dtype=int), np.arange(1, reading.n_elements)], axis=1)


class Reactions(Chain):
    def with_maps(self, maps):
        return self


def reading(text: str, sizes: list[int] | None = None) -> Reading:
    """With a special token on both ends; `sizes[i]` residues in token i."""
    elements, start = [()], 0
    for size in [1] * len(text) if sizes is None else sizes:
        elements.append(tuple(range(start, start + size)))
        start += size
    return Reading(text, (None,) * (len(elements) + 1), None, (*elements, ()))


def write(folder: Path, text: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def instances(source, index: int, read: Reading) -> dict[str, list[tuple[int, ...]]]:
    found: dict[str, list[tuple[int, ...]]] = {}
    for concept, tokens in source.label(index, read).instances:
        assert source.concepts[concept].kind == "token"
        found.setdefault(source.concepts[concept].name, []).append(tokens)
    return found


def numbers(source, index: int, read: Reading) -> dict[str, float]:
    return dict(zip([c.name for c in source.concepts], source.label(index, read).numbers.tolist(), strict=True))


def test_patterns_give_one_instance_per_match(tmp_path):
    source = read_concept_file(write(tmp_path, PATTERNS + 'AB,motif,regex,AB\nrun,motif,regex,"C{1,2}"\n'), Chain())
    assert [(c.name, c.group, c.kind) for c in source.concepts] == [("AB", "motif", "token"), ("run", "motif", "token")]
    assert instances(source, 0, reading("ABCCAB")) == {"AB": [(0, 1), (4, 5)], "run": [(2, 3)]}
    assert np.isnan(source.label(0, reading("ABCCAB")).numbers).all()
    # Matches of no character are no instances.
    empty = read_concept_file(write(tmp_path, PATTERNS + "none,g,regex,Z*\n"), Chain())
    assert instances(empty, 0, reading("AB")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PATTERNS + "a,g,regex,AB\nb,g,regex,[\n", r"line 3: pattern '\[': no regular expression"),
        (PATTERNS + "a,g,smarts,[C\n", r"line 2: pattern '\[C': RDKit cannot read it as SMARTS"),
        (PATTERNS + "a,g,regex,A{1,2}\n", "line 2: 5 fields instead of 4: quote"),
        (PATTERNS + "a,,regex,A\n", "an empty cell"),
        (PATTERNS + "a,g,regex,A\na,h,regex,B\n", "'a' is given twice"),
        (PATTERNS, "holds no pattern"),
        ("name,kind,pattern\na,regex,A\n", "line 1 must be name,group,kind,pattern"),
        ("", "is empty: line 1 must be"),
        ("sequence,smiles,class:a\nA,C,1\n", "hold one column smiles or sequence"),
        ("sequence,paratope\nA,1\n", "line 1: label column 'paratope': write kind:column"),
        ("sequence,label:x\nA,1\n", r"the kind being token \(.*class.*value.*maps"),
        ("sequence,class:\nA,1\n", "write kind:column"),
        ("sequence,class:x,class:x\nA,1,1\n", "'class:x' is given twice"),
        ("sequence,class:x,value:x\nA,1,1\n", "'x' is given twice"),
        ("sequence,id\nA,1\n", "no label column kind:NAME"),
        ("sequence,class:x\n", "holds no sequence"),
        ("sequence,class:x\nA,1\n,\nNA,0\n", "line 4: labels without a sequence"),
        ("sequence,class-if-known:x\nA,\n", "class-if-known:x of labels.csv holds no label"),
        ("sequence,token:x\nAB,..\n", "token:x of labels.csv holds no label"),
        ("sequence,maps:m\nAB,AB\n", "only reactions take maps"),
        ('sequence,class:x\nA,"1\n', "line 2"),
        ("sequence,class:x\n" + "".join(f"{'A' * i},v{i}\n" for i in range(1, MAX_VALUES + 2)), "201 different values"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_concept_file(write(tmp_path, text), Chain())


def test_unusable_paths(tmp_path):
    (tmp_path / "latin.csv").write_bytes(PATTERNS.encode() + b"\xff,g,regex,A\n")
    (tmp_path / "bad.csv.gz").write_bytes(b"no gzip")
    for name, message in [
        ("no.csv", "does not exist"),
        ("a.txt", "rename"),
        ("latin.csv", "UTF-8"),
        ("bad.csv.gz", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=message):
            read_concept_file(tmp_path / name, Chain())


def test_a_pattern_only_the_domain_can_judge_is_refused_with_its_line(tmp_path):
    source = read_concept_file(write(tmp_path, PATTERNS + "a,g,motif,A\nb,g,motif,?\n"), Chain())
    with pytest.raises(InputError, match=r"labels.csv, line 3: pattern '\?': no motif"):
        source.label(0, reading("A"))
    source = read_concept_file(write(tmp_path, PATTERNS + "a,g,prosite,A\n"), Chain())
    with pytest.raises(InputError, match=r"line 2.*no kind prosite"):
        source.label(0, reading("A"))


def test_token_labels_are_runs_of_neighbouring_elements(tmp_path):
    path = write(tmp_path, "id\tsequence\ttoken:ss\n1\tABCDEF\tHH.HEE\n", "labels.tsv")
    source = read_concept_file(path, Chain())
    assert [(c.name, c.group) for c in source.concepts] == [("ss=E", "ss"), ("ss=H", "ss")]
    assert instances(source, 9, reading("ABCDEF")) == {"ss=H": [(1, 2), (4,)], "ss=E": [(5, 6)]}
    # A token of several residues is in the run of each of them.
    assert instances(source, 9, reading("ABCDEF", [1, 3, 2])) == {"ss=H": [(1, 2), (2,)], "ss=E": [(3,)]}
    # Neighbours are what the domain says, not what stands side by side: here only element 0 has any.
    assert instances(source, 9, reading("ABCDEF"))["ss=E"] == [(5, 6)]
    star = read_concept_file(path, Branched())
    assert instances(star, 9, reading("ABCDEF")) == {"ss=H": [(1, 2, 4)], "ss=E": [(5,), (6,)]}


def test_blanks_are_labels_and_gzip_is_read(tmp_path):
    (tmp_path / "labels.csv.gz").write_bytes(gzip.compress("\ufeffsequence,token:dssp\nABC,H  \n".encode()))
    source = read_concept_file(tmp_path / "labels.csv.gz", Chain())
    assert instances(source, 0, reading("ABC")) == {"dssp=H": [(1,)], "dssp= ": [(2, 3)]}


def test_classes_and_values(tmp_path):
    text = "Sequence,name,class:gene,class:active,value:logp\nAB,x,IGHV1,1,-0.5\nCD,y,IGHV2,0,1e2\n"
    source = read_concept_file(write(tmp_path, text), Chain())
    assert [(c.name, c.group, c.kind) for c in source.concepts] == [
        ("gene=IGHV1", "gene", "class"),
        ("gene=IGHV2", "gene", "class"),
        ("active=1", "active", "class"),
        ("logp", "logp", "value"),
    ]
    assert numbers(source, 0, reading("AB")) == {"gene=IGHV1": 1, "gene=IGHV2": 0, "active=1": 1, "logp": -0.5}
    assert numbers(source, 0, reading("CD")) == {"gene=IGHV1": 0, "gene=IGHV2": 1, "active=1": 0, "logp": 100}
    # Not listed: not known, which is no reason to leave the sequence out.
    assert np.isnan(source.label(0, reading("EF")).numbers).all()


def test_a_missing_token_label_is_a_reject_and_no_negative(tmp_path):
    source = read_concept_file(write(tmp_path, "sequence,token:site,value:v\nAB,01,1\n"), Chain())
    with pytest.raises(InputError, match=r"^no label in labels\.csv$"):
        source.label(0, reading("BA"))


@pytest.mark.parametrize(
    ("kind", "cell", "reason"),
    [
        ("token", "01", "token:x of labels.csv has 2 characters for 3 residues"),
        ("token", "", "token:x is empty in line 3 of labels.csv"),
        ("class", "", "class:x is empty in line 3"),
        ("class", "NaN", "class:x is NaN in line 3"),
        ("value", " ", "value:x is empty"),
        ("value", "nan", "value:x is nan"),
        ("value", "inf", "value:x is 'inf', which is not finite"),
        ("value", "1,5", "value:x is '1,5', which is written with a decimal comma: write a point, in line 3"),
        ("value-if-known", "-inf", "which is not finite"),
    ],
)
def test_a_damaged_label_rejects_its_sequence_only(tmp_path, kind, cell, reason):
    source = read_concept_file(write(tmp_path, f'sequence,{kind}:x\nAB,10\nABC,"{cell}"\n'), Chain())
    with pytest.raises(InputError, match=reason):
        source.label(0, reading("ABC"))
    labels = source.label(0, reading("AB"))
    assert labels.instances or np.isfinite(labels.numbers).all()


def test_if_known_leaves_gaps_out_and_keeps_the_rest(tmp_path):
    text = "sequence,class-if-known:a,value-if-known:b\nA,1,\nB,,2\nC,0,nan\n"
    source = read_concept_file(write(tmp_path, text), Chain())
    found = [list(numbers(source, 0, reading(t)).values()) for t in "ABC"]
    np.testing.assert_array_equal(found, [[1, np.nan], [np.nan, 2], [0, np.nan]])


def test_contradicting_lines_reject_equal_ones_do_not(tmp_path):
    text = "sequence,class:x,value:v\nA,1,2\nB,0,1\nA,1,2.0\nB,1,1\nC,0,1\nC,0,\n"
    source = read_concept_file(write(tmp_path, text), Chain())
    assert numbers(source, 0, reading("A")) == {"x=1": 1, "v": 2}
    with pytest.raises(InputError, match=r"labels\.csv labels it differently in line 3 and line 5"):
        source.label(0, reading("B"))
    with pytest.raises(InputError, match="value:v is empty in line 7"):
        source.label(0, reading("C"))


def test_columns_of_the_data():
    table = pl.DataFrame(
        {
            "sequence": ["AB", "CD", "AB", "EF"],
            "site": ["01", "10", "01", "1"],
            "gene": ["x", "y", "x", None],
            "year": [1.0, 2.0, 1.0, 3.0],
            "good": [True, False, True, True],
        }
    )
    rows, _ = read_inputs(table)
    specs = ["token:site", "class-if-known:gene:V gene", "class:year", "value:year:age", "class:good"]
    source = label_columns(rows, specs, Chain())
    assert [c.name for c in source.concepts] == [
        *("site=0", "site=1", "V gene=x", "V gene=y", "year=1", "year=2", "year=3", "age", "good=1")
    ]
    assert instances(source, 0, reading("AB")) == {"site=0": [(1,)], "site=1": [(2,)]}
    np.testing.assert_array_equal(source.label(1, reading("CD")).numbers[2:], [0, 1, 0, 1, 0, 2, 0])
    with pytest.raises(InputError, match=r"token:site of the data has 1 characters for 2 residues"):
        source.label(3, reading("EF"))
    assert label_columns(rows, [], Chain()).concepts == ()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("token:n", "was read as numbers"),
        ("class:none", "no column 'none' for --label: give one of n, list"),
        ("n", "write kind:column"),
        ("class:list", "neither text nor numbers"),
    ],
)
def test_columns_of_the_data_that_cannot_be_used(spec, message):
    rows, _ = read_inputs(pl.DataFrame({"sequence": ["A"], "n": [1], "list": [[1]]}))
    with pytest.raises(InputError, match=message):
        label_columns(rows, [spec], Chain())


def test_contradicting_rows_of_the_data_are_rejected_by_index():
    rows, _ = read_inputs(pl.DataFrame({"sequence": ["A", "B", "A"], "x": [1, 0, 0]}))
    source = label_columns(rows, ["class:x"], Chain())
    for index in (0, 2):
        with pytest.raises(InputError, match="the data labels it differently in row 0 and row 2"):
            source.label(index, reading("A"))
    assert source.label(1, reading("B")).numbers.tolist() == [0]


def test_maps_are_handed_over_by_sequence(tmp_path):
    text = "smiles,maps:rxn\nC>>C,[CH4:1]>>[CH4:1]\nN>>N,\n"
    source = read_concept_file(write(tmp_path, text), Reactions())
    assert source.maps == {"C>>C": "[CH4:1]>>[CH4:1]"}
    assert source.concepts == ()
    assert source.label(0, reading("C>>C")).instances == ()
    for text, reason in [("N>>N", "maps:rxn is empty"), ("O>>O", "no label in")]:
        with pytest.raises(InputError, match=reason):
            source.label(0, reading(text))
    rows, _ = read_inputs(pl.DataFrame({"sequence": ["C>>C"], "mapped": ["[CH4:1]>>[CH4:1]"]}))
    assert label_columns(rows, ["maps:mapped"], Reactions()).maps == source.maps
    assert read_concept_file(write(tmp_path, "smiles,value:v\nC,1\n"), Chain()).maps is None
