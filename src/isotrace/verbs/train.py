"""A dictionary of features, learned from a subject's activations."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from isotrace.base.errors import InputError, RunError
from isotrace.base.progress import silent
from isotrace.base.settings import Seed
from isotrace.verbs.request import (
    COMMAS,
    REPEATED,
    Answer,
    Column,
    Data,
    Floats,
    OnSubject,
    Progress,
    look_at,
    verb,
)

if TYPE_CHECKING:
    from isotrace.subjects.subject import Subject


class TrainRequest(OnSubject):
    way_on = "the same command with --resume goes on from the last checkpoint"
    data: Data = None
    architecture: str
    """sae, transcoder, skip_transcoder, crosslayer, snmf (groups of neurons) or pca."""
    out: Path
    """Run folder; it is the dictionary when the run is done."""
    store: Path | None = None
    """Activation store (isotrace harvest) instead of --data."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens (of pooled dictionaries sequences) to train on; usual: four passes of the data, 200,000 to 8 million."""
    config: Path | None = None
    """TOML file with everything else (docs/train.md)."""
    features: int | None = Field(default=None, ge=1)
    """Features per layer; usual: 8 per dimension."""
    k: int | None = Field(default=None, ge=1)
    """Active features per token and layer; usual: 32."""
    activation: str | None = None
    """topk, batchtopk, relu, jumprelu or gated."""
    window: int | None = Field(default=None, ge=1)
    """Layers a crosslayer feature writes to."""
    layers: Annotated[tuple[int, ...] | None, COMMAS] = None
    """Layers covered, as 0,2,4; usual: all, of pooled kinds the last."""
    hookpoint: str | None = None
    """What an sae reads and writes, as resid_post, pooled, latent; usual: mlp_out."""
    mask_rate: float | None = Field(default=None, ge=0, le=0.99)
    """Share masked in every second batch; usual: 0.15, 0 of causal subjects and of what is pooled."""
    seed: Seed | None = None
    """Seed of the dictionary's weights; that of the stream stands in --config."""
    seeds: Annotated[tuple[Seed, ...] | None, COMMAS] = None
    """As 0,1,2: one dictionary per seed from one stream."""
    resume: bool = False
    """Go on from the folder's checkpoint."""
    overwrite: bool = False
    """Start again in a folder that holds a run."""
    skip_bad_shards: bool = False
    """Leave damaged shards of --store out, and name them."""
    dtype: Floats = "float32"
    """Of the saved weights."""
    log: Annotated[tuple[Literal["tensorboard", "wandb"], ...], REPEATED] = ()
    """Where to log besides log.jsonl; repeatable."""
    parallel: Literal["data", "features"] = "data"
    """What processes share under torchrun."""
    column: Column = None

    def look(self) -> None:
        super().look()
        if (self.data is None) == (self.store is None):
            raise InputError("give --data with sequences, or --store with harvested activations.")
        if isinstance(self.data, str) and self.data == "-":
            raise InputError("training reads its sequences again when it is resumed: save standard input in a file.")
        look_at(self.data, self.column)


@verb(TrainRequest)
def train(request: TrainRequest, progress: Progress) -> Answer | None:
    """Train dictionaries on a subject's activations; every step is logged, and a killed run resumes exactly.

    None in processes that only help another one."""
    from isotrace.training.jobs import make_jobs, read_settings
    from isotrace.verbs.loading import subject_of
    from isotrace.verbs.training import run_training

    settings = read_settings(request.config)
    given = {"n_features": request.features} | {n: getattr(request, n) for n in ("k", "activation", "window", "layers")}
    settings["dictionary"] |= {name: value for name, value in given.items() if value is not None}
    given = {"tokens": request.tokens, "seed": request.seed}
    settings["training"] |= {name: value for name, value in given.items() if value is not None}
    if request.seeds is not None:
        if settings["jobs"]:
            raise InputError("--seeds and [[jobs]] both say what to train: give one of them.")
        settings["jobs"] = [{"name": f"seed-{s}", "training": {"seed": s}} for s in request.seeds]
    if request.mask_rate is not None:
        if request.store is not None:
            raise InputError("--mask-rate is for --data: the store was harvested with a rate of its own.")
        settings["stream"] |= {"mask_rate": request.mask_rate}
    subject = subject_of(request)
    if request.hookpoint is not None:
        settings["dictionary"] |= hookpoint_of(request, subject)
    jobs = make_jobs(subject, request.architecture, settings)
    check_folder(request.out, request.resume, request.overwrite)
    summary = run_training(subject, jobs, settings, request, bar=progress is not silent)
    return None if summary is None else Answer(summary)


def hookpoint_of(request: TrainRequest, subject: "Subject") -> dict[str, str]:
    """The settings that --hookpoint stands for. Raises InputError for one that is not of the subject's width, or where
    reading and writing are two places."""
    from isotrace.activations.harvest import width
    from isotrace.subjects.heads.pooled import usual_layers

    if request.architecture != "sae":
        say = "give hookpoint_in and hookpoint_out in --config"
        raise InputError(f"--hookpoint is for an sae: a {request.architecture} reads and writes two places, {say}.")
    layer = usual_layers(subject, [request.hookpoint or ""])[-1]
    if (found := width(subject, [f"layers.{layer}.{request.hookpoint}"])) != subject.d_model:
        raise InputError(f"--hookpoint {request.hookpoint} is {found} wide, dictionaries are {subject.d_model} wide.")
    site = f"layers.{{}}.{request.hookpoint}"
    return {"hookpoint_in": site, "hookpoint_out": site}


def check_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """Training is never thrown away by running a command twice. What was stopped before its first checkpoint is resumed
    from the beginning."""
    from isotrace.base.runs import MANIFEST, read_manifest

    unfinished = (out / "checkpoint.pt").exists()
    if unfinished and not (resume or overwrite):
        raise RunError(f"{out} holds an unfinished run: go on with --resume, or start again with --overwrite.")
    if resume and not unfinished:
        if not (out / MANIFEST).exists():
            raise RunError(f"{out} holds no run to resume: leave --resume out.")
        if read_manifest(out)["status"] == "complete":
            raise RunError(f"{out} holds no checkpoint: the run is finished.")
