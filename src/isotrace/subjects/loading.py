"""Loading a checkpoint: which class of transformers it is of, and the errors a user can act on."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import logging as transformers_logging

from isotrace.base.errors import SubjectError
from isotrace.subjects.dispatch import ATTENTION
from isotrace.subjects.families import FAMILIES, Family, family_of
from isotrace.subjects.heads.outputs import Kind
from isotrace.subjects.heads.task_head import TaskHead
from isotrace.subjects.sources import adapter
from isotrace.subjects.sources.source import SubjectFiles
from isotrace.subjects.tokenizers import load_tokenizer

HEADS = {
    "masked": ("AutoModelForMaskedLM", modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "causal": ("AutoModelForCausalLM", modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "denoising": ("AutoModelForSeq2SeqLM", modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
}
TASKS: dict[Kind, tuple[str, Any]] = {
    "sequence": ("AutoModelForSequenceClassification", modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    "token": ("AutoModelForTokenClassification", modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
}


def device_of(name: str) -> torch.device:
    """`auto` is this process's GPU where there is one. Raises SubjectError for one that is not there."""
    here = torch.cuda.is_available()
    if name == "auto":
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if here else "cpu")
    if name.startswith("cuda") and not here:
        raise SubjectError(f"--device {name}: torch sees no GPU here; use auto or cpu.")
    return torch.device(name)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers says nothing but errors inside the block, and what it said before behind it."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@quiet()
def load_model(
    files: SubjectFiles, device: str, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, SubjectFiles, bool, TaskHead | None]:
    """(model, tokenizer, files, whether it has a language-model head, the head of a fine-tuned model).

    `architectures` in the config says which head there is: without it, or where it names a class transformers
    does not have, there must be one. Raises SubjectError for an architecture without a family, a model that its
    family cannot handle exactly, damaged files, missing or non-finite weights and a tokenizer without offsets.
    """
    source = files.source
    with _explained(source):
        # an adapter's own config, where one lies in its folder, knows the names of its labels
        described = _holding("config.json", files)
        _introduce(described)
        config = AutoConfig.from_pretrained(described, trust_remote_code=False)
    family = family_of(config.model_type)
    brought = {} if files.adapter is None else _adapt(config, family, files.adapter, source)
    head_class, has_head, kind = _head_class(config, family)
    paths = None if kind is None else getattr(family, kind)
    reason = family.refuse(config, has_head) if family.refuse else None
    if family.objective == "denoising" and getattr(config, "decoder_start_token_id", None) is None:
        reason = "its config names no decoder_start_token_id"
    if reason:
        raise SubjectError(f"{source} cannot be handled exactly: {reason}.")
    with _explained(source):
        implementation = ATTENTION if family.pattern == "function" else "eager"
        with adapter.alone(files.folder) as folder:
            model, info = head_class.from_pretrained(
                folder, config=config, dtype=dtype, attn_implementation=implementation, output_loading_info=True
            )
        if files.adapter is not None:
            model = adapter.merged(model, files.adapter, source)
        tokenizer = load_tokenizer(source, _holding("tokenizer_config.json", files), family.native)
    needed = [] if paths is None else [path for path in (paths.classifier, paths.dense, paths.norm) if path]
    missing = sorted(
        k
        for k in {*info["missing_keys"]} - {*brought}
        if k.rpartition(".")[0] in needed or not any(o in k for o in family.optional_weights)
    )
    if missing:
        headless = "" if not has_head else ", or, if it has no head, name its class without one in architectures"
        raise SubjectError(
            f"{source} lacks {len(missing)} weights, {missing[0]!r} first: save it again in full{headless}."
        )
    if adapted := sorted(k for k in info["unexpected_keys"] if "lora_" in k):
        raise SubjectError(
            f"{source} holds {len(adapted)} weights of an adapter, {adapted[0]!r} first, that the model would leave "
            "out: merge it (peft: merge_and_unload) and save it again."
        )
    for name, held in (*model.named_parameters(), *model.named_buffers()):
        if not torch.isfinite(held).all():
            raise SubjectError(f"weight {name!r} of {source} holds NaN or infinity: the file is damaged, get it again.")
    words, rows = max(tokenizer.get_vocab().values()) + 1, model.get_input_embeddings().weight.shape[0]
    if words > rows:
        raise SubjectError(
            f"the tokenizer of {source} has {words} tokens and the model {rows} embeddings: the two do not belong "
            "together, or tokens were added without resize_token_embeddings; save both again."
        )
    model = model.to(device_of(device))
    if family.prepare:
        family.prepare(model)
    task = None if kind is None or paths is None else TaskHead(model, paths, kind, source)
    return model, tokenizer, files, has_head, task


def _introduce(folder: Path) -> None:
    """Makes the classes that a family brings for the model of `folder` known to transformers."""
    model_type = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    family = FAMILIES[model_type] if model_type is not None and model_type in FAMILIES else None
    if family is not None and (native := family.native) is not None:
        AutoConfig.register(family.model_type, native.config, exist_ok=True)
        transformers.AutoModel.register(native.config, native.base, exist_ok=True)
        auto, _ = HEADS[family.objective]
        getattr(transformers, auto).register(native.config, native.language_model, exist_ok=True)


def _holding(name: str, files: SubjectFiles) -> Path:
    """The folder of the adapter, where the file is there, else that of the model."""
    return files.adapter if files.adapter and (files.adapter / name).is_file() else files.folder


def _adapt(config: Any, family: Family, folder: Path, source: str) -> dict[str, Any]:
    """Make `config` that of the model with the adapter of `folder`, which may bring a head; its weights by name. Raises
    SubjectError for a task whose head the family has no entry for."""
    task = adapter.settings(folder, source).get("task_type")
    weights = adapter.weights_of(folder)
    if (kind := adapter.KINDS.get(task or "")) is None:
        return weights
    auto, classes = TASKS[kind]
    paths = getattr(family, kind)
    if paths is None:
        raise SubjectError(
            f"{source} is an adapter for {task}, whose head the family {family.model_type} does not name."
        )
    config.architectures = [classes.get(config.model_type, auto)]
    rows = weights.get(f"{paths.classifier}.weight")
    if rows is not None and len(rows) != config.num_labels:
        config.num_labels = len(rows)
    return weights


def _head_class(config: Any, family: Family) -> tuple[Any, bool, Kind | None]:
    """(transformers' automatic class, whether it has the language-model head, the kind of another head)."""
    auto, names = HEADS[family.objective]
    heads = {m.get(config.model_type) for m in (names, modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES)}
    named = (config.architectures or [None])[0]
    if family.native is not None:
        has_head = named not in family.native.headless
        return getattr(transformers, auto if has_head else "AutoModel"), has_head, None
    for kind, (task, classes) in TASKS.items():
        if named is not None and named == classes.get(config.model_type) and getattr(family, kind) is not None:
            return getattr(transformers, task), False, kind
    has_head = named is None or named in heads or not hasattr(transformers, named)
    return getattr(transformers, auto if has_head else "AutoModel"), has_head, None


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """transformers and safetensors raise many kinds of errors; all mean the same to a user."""
    try:
        yield
    except SubjectError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SubjectError(f"cannot load {source}: {reason}") from error


def settings_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[Any]:
    """dtype, config (what is not transformers' default, but for how, when and as what it was saved) and tokenizer (but
    for the padding and truncation of its last call)."""
    config = json.loads(model.config.to_json_string(use_diff=True))
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    noise = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
    kept = [{k: v for k, v in one.items() if k not in (*noise, "padding", "truncation")} for one in (config, rules)]
    return [str(model.dtype), *kept]


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 of the vocabulary, independent of how the tokenizer was saved."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
