"""BLOSUM62 (Henikoff and Henikoff 1992, PNAS 89, 10915): log-odds of two amino acids in one column, in half bits."""

_LOWER = """
A  4
C  0  9
D -2 -3  6
E -1 -4  2  5
F -2 -2 -3 -3  6
G  0 -3 -1 -2 -3  6
H -2 -3 -1  0 -1 -2  8
I -1 -1 -3 -3  0 -4 -3  4
K -1 -3 -1  1 -3 -2 -1 -3  5
L -1 -1 -4 -3  0 -4 -3  2 -2  4
M -1 -1 -3 -2  0 -3 -2  1 -1  2  5
N -2 -3  1  0 -3  0  1 -3  0 -3 -2  6
P -1 -3 -1 -1 -4 -2 -2 -3 -1 -3 -2 -2  7
Q -1 -3  0  2 -3 -2  0 -3  1 -2  0  0 -1  5
R -1 -3 -2  0 -3 -2  0 -3  2 -2 -1  0 -2  1  5
S  1 -1  0  0 -2  0 -1 -2  0 -2 -1  1 -1  0 -1  4
T  0 -1 -1 -1 -2 -2 -2 -1 -1 -1 -1  0 -1 -1 -1  1  5
V  0 -1 -3 -2 -1 -3 -3  3 -2  1  1 -3 -2 -2 -3 -2  0  4
W -3 -2 -4 -3  1 -2 -2 -3 -3 -2 -1 -4 -4 -2 -3 -3 -2 -3 11
Y -2 -2 -3 -2  3 -3  2 -1 -2 -1 -1 -2 -3 -1 -2 -2 -2 -1  2  7
"""
_ROWS = [line.split() for line in _LOWER.strip().splitlines()]
RESIDUES = "".join(row[0] for row in _ROWS)
_TRIANGLE = {(row[0], other): int(value) for row in _ROWS for other, value in zip(RESIDUES, row[1:], strict=False)}
BLOSUM62 = _TRIANGLE | {(b, a): value for (a, b), value in _TRIANGLE.items()}
"""(amino acid, amino acid) → score, of the twenty."""
