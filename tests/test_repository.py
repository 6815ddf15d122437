"""What must hold of the repository as a whole: sizes, links, pins, and documents that agree with the code."""

import ast
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import isotrace
from isotrace.base import errors
from isotrace.datasets.inputs import FORMATS

ROOT = Path(__file__).parents[1]
MAX_LINES = 300
LONGER: dict[str, str] = {  # file → why it is longer than MAX_LINES
    "src/isotrace/subjects/subject.py": "one noun: all that a subject can be asked",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ERRORS = [value for value in vars(errors).values() if isinstance(value, type)]


def kept_files() -> list[Path]:
    """What git tracks or would: no build output, no run folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to it cannot be told")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [file for file in files if file.is_file()]


def texts(*suffixes: str) -> dict[str, str]:
    found = {}
    for file in kept_files():
        if file.suffix in suffixes or (file.suffix == "" and not suffixes):
            found[file.relative_to(ROOT).as_posix()] = file.read_text(encoding="utf-8")
    return found


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_files_are_short():
    lines = {name: text.count("\n") for name, text in texts(".py").items()}
    long = {name for name, count in lines.items() if count > MAX_LINES and name.startswith("src/")}
    assert long == set(LONGER)


ORDER = (
    "base", "engine", "stats", "domains", "subjects", "datasets", "interventions", "activations", "dictionaries",
    "training", "evaluation", "annotation", "probing", "attribution", "discovery", "steering", "transfer", "studies",
    "report", "verbs", "cli",
)  # fmt: skip
MAX_FILES = 10
MORE_FILES = {  # folder → why it holds more files than MAX_FILES
    "cli": "one file for every command",
    "verbs": "one file for every command",
    "subjects/families": "one file for every architecture family",
}


def sources() -> dict[str, str]:
    prefix = "src/isotrace/"
    return {name.removeprefix(prefix): text for name, text in texts(".py").items() if name.startswith(prefix)}


def test_no_room_imports_one_to_its_right():
    """Kernels are leaves that any room may use; imports for types alone count too."""
    wrong = []
    for name, text in sources().items():
        room = name.partition("/")[0]
        for node in ast.walk(ast.parse(text)):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            other = (module or "").removeprefix("isotrace.").partition(".")[0]
            if room in ORDER and other in ORDER and ORDER.index(other) > ORDER.index(room):
                wrong.append(f"{name}: {module}")
    assert not wrong


ROOMS_OF_KNOWLEDGE = ("domains", "studies", "verbs", "cli")
KNOWING = {  # file → why it still knows one domain
    "datasets/concept_files.py": "reads files of SMARTS",
    "datasets/inputs.py": "takes molecule objects",
    "datasets/parsing.py": "writes molecules of tables as SMILES",
    "datasets/reading/sdf.py": "reads SD files",
    "report/atlas/annotation.py": "reads structures of proteins",
    "report/atlas/structure.py": "shows residues in a structure",
    "report/page.py": "colours of atoms",
}


def test_domain_knowledge_stays_in_its_rooms():
    """A file that no longer needs it must leave the list."""
    special = ("rdkit", *(f"isotrace.domains.{name}" for name in ("molecule", "protein", "reaction")))
    knowing = set()
    for name, text in sources().items():
        for node in ast.walk(ast.parse(text)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(module == root or module.startswith(f"{root}.") for module in modules for root in special):
                knowing.add(name)
    assert {name for name in knowing if name.partition("/")[0] not in ROOMS_OF_KNOWLEDGE} == set(KNOWING)


def test_folders_hold_few_files():
    count = Counter(name.rpartition("/")[0] for name in sources() if not name.endswith("__init__.py"))
    assert {folder for folder, n in count.items() if n > MAX_FILES} == set(MORE_FILES)


def test_no_file_names_a_place_outside_the_repository():
    # The lookbehind lets URLs and relative paths pass; the interpreter lines are not about a place of ours.
    place = re.compile(r"(?<![\w.:/~<{}])/(?:work|tmp|home|root|opt|mnt|srv|scratch|Users)/\w[^\s\"'`)]*")
    named = {
        f"{name}: {match[0]}"
        for name, text in texts(".py", ".md", ".toml", ".txt", ".json", ".js", ".html", ".jinja", ".cff", "").items()
        for match in place.finditer(text)
    }
    assert not named


def test_assets_are_small():
    sizes = {file: file.stat().st_size for file in kept_files() if (ROOT / "src/isotrace/assets") in file.parents}
    assert sum(sizes.values()) < 25 * 2**20


def test_versions_agree():
    assert isotrace.__version__ == PROJECT["version"]


def test_every_direct_dependency_is_pinned_within_its_range():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    asked = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]
    unmet = [str(need) for need in asked if not need.specifier.contains(pins.get(need.name, "0"))]
    assert not unmet


def test_documents_name_make_targets_that_exist():
    named = {
        (name, target)
        for name, text in texts(".md", "").items()
        for target in re.findall(r"(?:^|`|\$ )make ([a-z-]+)", text, flags=re.MULTILINE)
        if not name.endswith("LICENSE")
    }
    assert {("README.md", "demo"), ("README.md", "test")} <= named
    assert {target for _, target in named} <= targets()


def test_links_between_documents_resolve():
    broken = [
        f"{name}: {link}"
        for name, text in texts(".md").items()
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
        if "://" not in link and not (ROOT / name).parent.joinpath(link).exists()
    ]
    assert not broken


def test_every_citation_of_the_methods_resolves():
    sections = set(
        re.findall(r"^## (\d+)\. ", (ROOT / "docs/methods.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    assert len(sections) == 9
    cited = {
        (name, number)
        for name, text in sources().items()
        for numbers in re.findall(r"METHODS §+\s*([\d, ]*\d)", text)
        for number in re.findall(r"\d+", numbers)
    }
    assert len({name for name, _ in cited}) > 15
    assert not {(name, number) for name, number in cited if number not in sections}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_has_its_section_and_exit_code(error):
    sections = re.split(r"^## ", (ROOT / "docs/errors.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    section = next(text for text in sections if text.startswith(f"{error.__name__}\n"))
    assert f"Exit code {error.exit_code}." in section
    assert f"| {error.exit_code} |" in (ROOT / "docs/runs.md").read_text(encoding="utf-8")


def test_every_suffix_that_is_read_is_documented():
    page = (ROOT / "docs/inputs.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\.[a-z]+)`", page)) - {".gz"} == set(FORMATS)
