"""The models that come inside published wheels: where each lies in its wheel and what it is.

A new one is an entry of `SUBJECTS`; `scripts/make_pypi_reference.py` and `tests/subjects/test_pypi.py` say whether it
computes what its own package computes.
"""

from dataclasses import dataclass
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
    """

    name: str
    wheel: Wheel
    checkpoint: str
    config: str | None
    vocabulary: str
    layout: Literal["transformers", "fairseq"]
    tokens: Literal["smiles", "residues"]
    architecture: str
    n_layers: int
    d_model: int
    domain: str
    about: str

    @property
    def source(self) -> str:
        return f"pypi:{self.name}"


RXNFP = Wheel(
    package="rxnfp",
    version="0.1.0",
    sha256="c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf",
    megabytes=74.7,
    licence="MIT",
    paper="Schwaller et al. 2021, Nature Machine Intelligence 3, 144",
)
RXNMAPPER = Wheel(
    package="rxnmapper",
    version="0.4.3",
    sha256="27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
    megabytes=3.0,
    licence="MIT",
    paper="Schwaller et al. 2021, Science Advances 7, eabe4166",
)
ANTIBERTY = Wheel(
    package="antiberty",
    version="0.1.3",
    sha256="30d910992b190013871bac49cdc032e01a19339f7d2b958ab99b0eb44638352a",
    megabytes=96.6,
    licence="MIT",
    paper="Ruffolo et al. 2021, arXiv:2112.07782",
)
SAPIENS = Wheel(
    package="sapiens",
    version="1.0.2",
    sha256="9e03c81118e362b81053dcb53c8cdceaa53f62d07668cc2f31fcd478536d8722",
    megabytes=7.0,
    licence="MIT",
    paper="Prihoda et al. 2022, mAbs 14, 2020203",
)


def _rxnfp(name: str, architecture: str, about: str) -> Published:
    folder = f"rxnfp/models/transformers/{name}"
    return Published(
        name=f"rxnfp/{name}",
        wheel=RXNFP,
        checkpoint=f"{folder}/pytorch_model.bin",
        config=f"{folder}/config.json",
        vocabulary=f"{folder}/vocab.txt",
        layout="transformers",
        tokens="smiles",
        architecture=architecture,
        n_layers=12,
        d_model=256,
        domain="reaction",
        about=about,
    )


def _sapiens(chain: str, about: str) -> Published:
    return Published(
        name=f"sapiens/{chain}",
        wheel=SAPIENS,
        checkpoint=f"sapiens/models/v1/checkpoint_{chain}.pt",
        config=None,
        vocabulary="sapiens/models/v1/dict.txt",
        layout="fairseq",
        tokens="residues",
        architecture="RobertaForMaskedLM",
        n_layers=4,
        d_model=128,
        domain="antibody",
        about=about,
    )


_ALBERT = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
_ANTIBERTY = "antiberty/trained_models"

SUBJECTS: tuple[Published, ...] = (
    _rxnfp("bert_pretrained", "BertForMaskedLM", "reactions, masked tokens only"),
    _rxnfp("bert_ft", "BertModel", "fine-tuned on reaction classes; published without its classifier"),
    _rxnfp("bert_ft_10k_25s", "BertForSequenceClassification", "fine-tuned on 50 reaction classes"),
    Published(
        name="rxnmapper/albert_heads_8_uspto_all_1310k",
        wheel=RXNMAPPER,
        checkpoint=f"{_ALBERT}/pytorch_model.bin",
        config=f"{_ALBERT}/config.json",
        vocabulary=f"{_ALBERT}/vocab.txt",
        layout="transformers",
        tokens="smiles",
        architecture="AlbertForMaskedLM",
        n_layers=12,
        d_model=256,
        domain="reaction",
        about="reactions, masked tokens only; its attention maps atoms",
    ),
    Published(
        name="antiberty/AntiBERTy_md_smooth",
        wheel=ANTIBERTY,
        checkpoint=f"{_ANTIBERTY}/AntiBERTy_md_smooth/pytorch_model.bin",
        config=f"{_ANTIBERTY}/AntiBERTy_md_smooth/config.json",
        vocabulary=f"{_ANTIBERTY}/vocab.txt",
        layout="transformers",
        tokens="residues",
        architecture="BertForMaskedLM",
        n_layers=8,
        d_model=512,
        domain="antibody",
        about="antibody chains of six species, heavy and light",
    ),
    _sapiens("vh", "human heavy-chain variable regions"),
    _sapiens("vl", "human light-chain variable regions"),
)


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
