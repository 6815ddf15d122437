"""SD files: RDKit reads the molecule of a record; its data fields are read here.

RDKit stops at the first field it does not understand and blocks the message, which loses the fields behind it.
"""

import re

import polars as pl
from rdkit import Chem, rdBase

from isotrace.base.errors import InputError
from isotrace.datasets.reading.cells import damage, free_names, shown, typed

OWN = {"index": pl.Int64, "name": pl.String, "sequence": pl.String}
ORIGINAL = {"original": pl.List(pl.Int64)}
_COUNTS = re.compile(r"^[ \d]{6}.*V[23]000\s*$", re.MULTILINE)
_END = re.compile(r"^M  END\s*$", re.MULTILINE)
_FIELD = re.compile(r">.*?<(.*)>[^>]*")
_NUMBERED = re.compile(r">.*?\b(DT\d+)\b.*")
_NEXT = re.compile(r">.*<.*>[^>]*|>\s+DT\d+\s*")  # ends a value even where no blank line does
_EMPTY = "unnamed"

Reject = tuple[int, str, str]
Table = tuple[pl.DataFrame, list[Reject]]


def sdf(text: str) -> Table:
    """One row per record: its title, RDKit's canonical SMILES, `original`, see `written`, and its data fields."""
    records = re.split(r"^\$\$\$\$.*\n?", text, flags=re.MULTILINE)
    if not records[-1].strip():
        records.pop()
    good, fields, bad, i = [], [], [], 0
    for record in records:
        title = record.partition("\n")[0].strip()
        # Records that run into each other count as many, so that an index is a molecule's place in the file.
        n = max(len(_COUNTS.findall(record)), 1)
        try:
            if why := damage([record]):
                raise InputError(why)
            if n > 1:
                raise InputError(f"the line $$$$ is missing between {n} molecules")
            end = _END.search(record)
            if end is None:
                raise InputError("the record has no line 'M  END': it is cut off, or no molecule")
            mol = _molecule(record[: end.end()])
            found = _fields(record[end.end() :].split("\n")[1:])
            good.append((i, title or None, *written(mol)))
            fields.append(found)
        except InputError as error:
            bad += [(i + k, shown(title), str(error)) for k in range(n)]
        i += n
    frame = pl.DataFrame(good, schema=OWN | ORIGINAL, orient="row")
    names = dict.fromkeys(key for field in fields for key in field)
    for key, name in free_names(names, OWN | ORIGINAL).items():
        frame = frame.with_columns(typed(pl.Series(name, [field.get(key) or None for field in fields], pl.String)))
    return frame, bad


def written(mol: Chem.Mol) -> tuple[str, list[int]]:
    """(RDKit's canonical SMILES, `original`): the i-th atom of the text is atom `original[i]` of `mol`."""
    text = Chem.MolToSmiles(mol)
    return text, [*mol.GetPropsAsDict(includePrivate=True, includeComputed=True).get("_smilesAtomOutputOrder", ())]


def _molecule(block: str) -> Chem.Mol:
    """Raises InputError with the reason."""
    with rdBase.BlockLogs():
        try:
            mol = Chem.MolFromMolBlock(block)
        except (RuntimeError, ValueError):
            mol = None
        if mol is not None:
            return mol
        try:
            raw = Chem.MolFromMolBlock(block, sanitize=False)
            problems = [] if raw is None else Chem.DetectChemistryProblems(raw)
        except (RuntimeError, ValueError):
            problems = []
    raise InputError(
        f"RDKit refuses the molecule: {problems[0].Message()}" if problems else "RDKit cannot read the record"
    )


def _fields(lines: list[str]) -> dict[str, str]:
    """Name → value, lines joined. A header is `> … <NAME> …`, or `> … DTn …`; its value ends at a blank line or the
    next header. Raises InputError for what belongs to no field, and for a name with two values."""
    found: dict[str, str] = {}
    name, value = None, []

    def close() -> None:
        text = "\n".join(value).strip()
        if name is not None and found.setdefault(name, text) != text:
            raise InputError(f"the data field {name!r} stands twice in the record, with different values")

    for line in [*lines, ""]:
        if name is not None and line.strip() and not _NEXT.fullmatch(line):
            value.append(line)
            continue
        header = _FIELD.fullmatch(line) or _NUMBERED.fullmatch(line)
        if header is None and line.startswith(">"):
            raise InputError(f"the data header {line.strip()!r} names no field: write > <NAME>")
        if header is None and line.strip():
            raise InputError(f"the line {line.strip()!r} belongs to no data field: remove it, or give it a header")
        close()
        name, value = (None, []) if header is None else (header[1].strip() or _EMPTY, [])
    return found
