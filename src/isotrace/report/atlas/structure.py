"""A protein structure coloured by what features do on its residues, as a part of a page or a page of its own.

Drawn by 3Dmol.js (Rego and Koes 2015), bundled. A page that shows several structures takes `css` and `js` once and
`html` of each: the script finds every `.structure` on the page, and mounts one that is added later when told to by
`isotraceStructures.mount(element)`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from isotrace.base.errors import InputError
from isotrace.domains.domain import Domain, Reading
from isotrace.domains.protein.domain import residue_weights
from isotrace.domains.protein.sequence import residues
from isotrace.domains.protein.structure import Match, Structure, match_chains, read_structure
from isotrace.report.page import in_script, render_page, rendered, template_text

TRACED = (
    ("mass", "mass", 1),
    ("raises the target", "score", 1),
    ("lowers the target", "score", -1),
    ("hiding it lowers the target", "hidden", 1),
    ("hiding it raises the target", "hidden", -1),
)
"""Views of a trace: name, entry of a unit, its sign."""
# What a viewer draws; remarks and anisotropic factors are most of many files.
_DRAWN = ("ATOM  ", "HETATM", "TER", "MODEL", "ENDMDL", "HELIX", "SHEET", "SSBOND", "CONECT", "CRYST1", "END")


@dataclass(frozen=True)
class Fragment:
    """Parts of a page: `html` goes where the view is to be, with what the script draws; `css` and `js` once per page,
    after the HTML."""

    html: str
    css: str
    js: str


def structure_data(structure: Path, reading: Reading, tracks: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What is shown, as plain data: the chains of a PDB or mmCIF file that match the sequence of `reading`, a protein's
    or an antibody's.

    `tracks`: name of a feature → its activation on every token, float ≥ 0 `[tokens]`; the first is shown at the
    start. Raises InputError for a file that cannot be read or has no such chain, for no tracks, another number of
    values than tokens, and values that are negative or not finite.
    """
    if not tracks:
        raise InputError("there is no feature to show on the structure: give at least one track.")
    sequence = residues(reading.text)
    found = read_structure(structure)
    matches = match_chains(found, sequence)
    return {
        "name": found.name,
        "format": found.format,
        "text": _drawn(found),
        "sequence": sequence,
        "chains": [_chain(match) for match in matches],
        "tracks": [_track(name, residue_weights(reading, values)) for name, values in tracks.items()],
        "notes": [_note(match, sequence) for match in matches],
    }


def structure_view(data: Mapping[str, Any]) -> Fragment:
    """The view of what `structure_data` gave."""
    tracks = [track["name"] for track in data["tracks"]]
    shown = {"name": data["name"], "tracks": tracks, "notes": data["notes"], "data": in_script(data)}
    script = "\n".join(map(template_text, ("../vendor/3Dmol-min.js", "dom.js", "structure.js")))
    return Fragment(rendered("structure_part.html.j2", shown), template_text("structure.css"), script)


def check_structure(path: Path, domain: Domain, text: str) -> None:
    """Raises InputError for a file that cannot be read, one without a chain of the sequence `text`, and a domain
    without residues."""
    if domain.element != "residue":
        raise InputError(f"a structure shows residues, and {domain.name} is another domain: leave out --structure.")
    match_chains(read_structure(path), residues(text))


def traced_on(path: Path, reading: Reading, units: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`structure_data` of what a trace says of its residues, `units` as `report.trace.atoms.unit_rows` has them: mass,
    what each adds to the target and takes from it, and what hiding each does. Raises InputError as that does."""
    rows = {row["index"]: row for row in units}
    tracks = {}
    for name, key, sign in TRACED:
        of = [[max(0.0, sign * (rows[e][key] or 0.0)) for e in part] for part in reading.elements]
        tracks[name] = [sum(part) for part in of]
    return structure_data(path, reading, tracks)


def structure_page(data: Mapping[str, Any], *, title: str, lead: str = "", back: str | None = None) -> str:
    """HTML of a page of its own, self-contained, with the line `lead` under its title and a link to `back`."""
    view = structure_view(data)
    link = Markup(' <a href="{}">All features</a>').format(back) if back else ""
    content = {"title": title, "lead": Markup("{}{}").format(lead, link)}
    content |= {"view": Markup(view.html), "view_css": Markup(view.css)}
    return render_page("structure.html.j2", content, script=view.js, data=None)


def _chain(match: Match) -> dict[str, Any]:
    """Its residues as [author number, insertion letter, residue of the sequence, first and last row of atoms]."""
    placed = [(match.chain.residues[i], j) for i, j in match.pairs]
    return {"name": match.chain.name, "residues": [[r.number, r.insertion, j, *r.rows] for r, j in placed]}


def _track(name: str, values: list[float]) -> dict[str, Any]:
    for value in values:
        if not math.isfinite(value) or value < 0:
            raise InputError(f"{name!r} has the value {value} on a residue: activations are finite and not negative.")
    return {"name": name, "scale": float(f"{max(values):.4g}"), "values": [float(f"{v:.4g}") for v in values]}


def _note(match: Match, sequence: str) -> str:
    shown, other = len(match.pairs), len(match.pairs) - match.identical
    text = f"Chain {match.chain.name}: {shown} of {len(sequence)} residues of the sequence are in the structure"
    return f"{text}, {other} of them as another residue." if other else f"{text}."


def _drawn(structure: Structure) -> str:
    if structure.format == "cif":
        return structure.text
    return "".join(f"{line}\n" for line in structure.text.splitlines() if line.startswith(_DRAWN))
