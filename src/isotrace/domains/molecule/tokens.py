"""What every token of a tokenised SMILES stands for, and parsing that keeps atoms in written order.

A tokenizer gives texts and character offsets; the lexer says what stands at those characters. Joining the two
gives each token its atoms (RDKit indices of the molecule `parse` returns), bond, ring closure or branch.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from rdkit import Chem, rdBase

from isotrace.base.errors import InputError
from isotrace.domains.molecule.smiles import BRACKET, LEXEME, Lexeme, UnitKind, lex


@dataclass(frozen=True)
class TokenUnit:
    """One token and what it stands for.

    `text` is the token as the tokenizer names it (`<mask>` for a masked one), `start:end` its characters in the
    SMILES, `atoms` RDKit atom indices: the atoms written by an atom token, the two atoms joined by a bond symbol
    or ring digit, the atom a parenthesis hangs on, none for a dot or special token. `partner` is the position
    among the tokens of the other ring digit or parenthesis of the pair. `depth` counts the branches around the
    token; a parenthesis has the depth of what it encloses.
    """

    text: str
    kind: UnitKind
    start: int
    end: int
    atoms: tuple[int, ...]
    partner: int | None
    depth: int

    @property
    def about(self) -> tuple[int, ...]:
        return self.atoms


def token_map(
    smiles: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]], *, begun: bool = False
) -> tuple[TokenUnit, ...]:
    """One `TokenUnit` per token of `smiles`, or, where it is `begun`, of the beginning of one, see `lex`.

    `offsets` are the `(start, end)` characters of each token. An empty offset marks a special token; a mask token
    has the offset of what it replaced. A piece of a bracket stands for that bracket's atom. A token that spans
    several lexemes stands for the atoms it writes, or, if it writes none, for what its first lexeme stands for.

    Raises InputError if `smiles` is no SMILES, if there is not one offset per token, or if the tokens leave out,
    overlap or overrun characters of `smiles`.
    """
    return map_lexemes(smiles, lex(smiles, begun=begun), tokens, offsets)


def map_lexemes(
    smiles: str, lexemes: Sequence[Lexeme], tokens: Sequence[str], offsets: Sequence[tuple[int, int]]
) -> tuple[TokenUnit, ...]:
    """`token_map` for a text that is lexed already; `lexemes` cover it without a gap."""
    if len(tokens) != len(offsets):
        raise InputError(f"{len(tokens)} tokens but {len(offsets)} offsets: give one offset per token.")
    starts = [item.start for item in lexemes]
    ends = [item.end for item in lexemes]
    at, token_of = 0, {}
    for position, (start, end) in enumerate(offsets):
        if start == end:
            continue
        if start != at or not start < end <= len(smiles):
            raise InputError(
                f"token {tokens[position]!r} covers characters {start}:{end} but {at} comes next: "
                "pass the offsets as the tokenizer gives them."
            )
        for character in range(start, end):
            token_of[character] = position
        at = end
    if at != len(smiles):
        raise InputError(f"the tokens stop at character {at} of {len(smiles)}: tokenise without truncation.")
    units = []
    for text, (start, end) in zip(tokens, offsets, strict=True):
        if start == end:
            units.append(TokenUnit(text, "special", start, end, (), None, 0))
            continue
        spanned = lexemes[bisect_right(ends, start) : bisect_left(starts, end)]
        written = [item for item in spanned if item.kind == "atom"]
        lead = written[0] if written else spanned[0]
        atoms = tuple(item.atoms[0] for item in written) if written else lead.atoms
        partner = None if lead.partner is None else token_of[lexemes[lead.partner].start]
        units.append(TokenUnit(text, lead.kind, start, end, atoms, partner, lead.depth))
    return tuple(units)


def parse(smiles: str) -> Chem.Mol:
    """Sanitised RDKit molecule of `smiles`, its atoms in written order, `[H]` kept as atoms.

    Surrounding white space is ignored. Raises InputError, with RDKit's reason where it gives one, for an empty
    SMILES, one that breaks SMILES syntax, an impossible valence or an aromatic system without a Kekulé form.
    """
    smiles = smiles.strip()
    if not smiles:
        raise InputError("the SMILES is empty: give a molecule.")
    elements = [element(item.text) for item in lex(smiles) if item.kind == "atom"]
    params = Chem.SmilesParserParams()
    params.removeHs = False
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles, params)
        if mol is None:
            raise InputError(f"{smiles!r} is no molecule: {_reason(smiles)}.")
    if [atom.GetSymbol() for atom in mol.GetAtoms()] != elements:
        raise InputError(f"RDKit reads other atoms from {smiles!r} than are written: spell it as OpenSMILES.")
    return mol


def parse_or_begin(smiles: str, whole: str | None) -> tuple[Chem.Mol, str | None]:
    """(the molecule, None), or (what a beginning has written of one, why it is no molecule itself).

    `whole`: who reads whole molecules only; None takes beginnings. Raises InputError for a text that is neither, and
    for a beginning where only whole ones are read.
    """
    try:
        return parse(smiles), None
    except InputError as error:
        reason = str(error).rstrip(".")
        try:
            mol = begin(smiles)
        except InputError:
            raise error from None
    if whole is not None:
        raise InputError(f"{reason}; only a causal subject takes the beginning of a molecule, {whole} is none.")
    return mol, reason


def begin(smiles: str) -> Chem.Mol:
    """What the beginning of a SMILES has written of a molecule, not sanitised: open rings, branches and bonds are left
    out, and a bracket that is not closed is an atom as far as it says which.

    Raises InputError for a text with which no SMILES begins, or whose atoms have too many bonds already.
    """
    kept = []
    for item in lex(smiles, begun=True):
        if item.kind == "atom" and item.text[0] == "[" and item.text[-1] != "]":
            closed = f"{item.text}]"
            kept.append(closed if BRACKET.fullmatch(closed) else "[*]")
        elif not (item.kind == "bond" and len(item.atoms) != 2) and not (item.kind == "ring" and item.partner is None):
            kept.append(item.text)
    while kept and kept[-1] in "(.":
        kept.pop()
    elements = [element(text) for text in kept if LEXEME.fullmatch(text).lastgroup == "atom"]  # pyright: ignore
    closed = "".join(kept) + ")" * (kept.count("(") - kept.count(")"))
    params = Chem.SmilesParserParams()
    params.removeHs = params.sanitize = False
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(closed, params) if elements else None
        if mol is None or [atom.GetSymbol() for atom in mol.GetAtoms()] != elements:
            raise InputError(f"no SMILES of a molecule begins with {smiles!r}.")
        try:
            mol.UpdatePropertyCache(strict=True)
        except Chem.MolSanitizeException as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise InputError(f"no SMILES of a molecule begins with {smiles!r}: {reason}.") from None
    Chem.FastFindRings(mol)
    return mol


def element(text: str) -> str:
    """Element symbol of an atom lexeme (`c`, `[13CH3:1]`), `*` for a wildcard."""
    bracket = BRACKET.fullmatch(text)
    return (bracket["element"] if bracket else text).capitalize()


def bond_of(unit: TokenUnit, mol: Chem.Mol) -> int | None:
    """RDKit bond index of the bond a bond symbol or ring digit stands for; None for every other token."""
    if unit.kind not in ("bond", "ring") or len(unit.atoms) != 2:
        return None
    bond = mol.GetBondBetweenAtoms(*unit.atoms)
    return None if bond is None else bond.GetIdx()


def _reason(smiles: str) -> str:
    params = Chem.SmilesParserParams()
    params.removeHs = False
    params.sanitize = False
    mol = Chem.MolFromSmiles(smiles, params)
    if mol is None:
        return "RDKit cannot parse it, check ring closures, bonds and bracket atoms"
    try:
        Chem.SanitizeMol(mol)
    except Chem.MolSanitizeException as error:
        return " ".join(str(error).split()).rstrip(".")
    return "its stereochemistry cannot be assigned"
