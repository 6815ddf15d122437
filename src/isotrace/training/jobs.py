"""What a training run is to do, from a TOML file and from what the command line says.

[dictionary]            # fields of DictionaryConfig
n_features = 1536
k = 24
[training]              # fields of TrainingConfig
learning_rate = 8e-4
[stream]                # fields of StreamConfig
block_tokens = 32768
[[jobs]]                # optional: several dictionaries from one stream, each with its own changes
name = "k48"
dictionary = { k = 48 }
training = { seed = 1 }
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from isotrace.base.errors import InputError
from isotrace.dictionaries.build import configure
from isotrace.dictionaries.registry import ARCHITECTURES
from isotrace.subjects.subject import Subject
from isotrace.training.config import StreamConfig, TrainingConfig
from isotrace.training.trainer import Job

SECTIONS = ("dictionary", "training", "stream", "jobs")
FEATURES_PER_DIMENSION = 8
ACTIVE = 32


def read_settings(path: Path | None) -> dict[str, Any]:
    """The TOML file as nested dicts, every section present. Raises InputError for anything else."""
    try:
        found = {} if path is None else tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as TOML ({str(error).splitlines()[0]}): mend it.") from None
    if unknown := [name for name in found if name not in SECTIONS]:
        raise InputError(f"{path}: unknown section {unknown[0]!r}; there is {', '.join(SECTIONS)}.")
    return {"dictionary": {}, "training": {}, "stream": {}, "jobs": []} | found


def make_stream(settings: Mapping[str, Any]) -> StreamConfig:
    return _made(StreamConfig, settings["stream"], "stream")


def make_jobs(subject: Subject, architecture: str, settings: Mapping[str, Any]) -> list[Job]:
    """The jobs of `settings`, one named "dictionary" where it lists none.

    Without `n_features` a dictionary has 8 per dimension of the subject; without `k`, a rule that needs one takes
    32. Raises InputError or DictionaryError naming the setting that is wrong.
    """
    jobs = []
    for entry in settings["jobs"] or [{"name": "dictionary"}]:
        if unknown := set(entry) - {"name", "dictionary", "training"}:
            raise InputError(f"jobs: unknown key {min(unknown)!r}; there is name, dictionary, training.")
        if not entry.get("name") or entry["name"] in [job.name for job in jobs]:
            raise InputError("jobs: every job needs a name of its own.")
        shape = settings["dictionary"] | entry.get("dictionary", {})
        name = shape.pop("architecture", architecture)
        own = ARCHITECTURES[name].usual
        usual: dict[str, Any] = {"n_features": own.get("n_features", FEATURES_PER_DIMENSION * subject.d_model)}
        if shape.get("activation", own.get("activation", "topk")) in ("topk", "batchtopk"):
            usual["k"] = ACTIVE
        config = configure(subject, name, **usual | shape)
        training = _made(TrainingConfig, settings["training"] | entry.get("training", {}), "training")
        jobs.append(Job(entry["name"], config, training))
    return jobs


def _made(kind: type, values: Mapping[str, Any], section: str):
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{section}.{first['loc'][0]}: {first['msg']}.") from None
