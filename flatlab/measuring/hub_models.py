"""Models of Hugging Face transformers and timm, by name or from a folder: `hf:NAME`, `hf:./folder`, `timm:NAME`.

Weights are read as tensors, never as code, and code that comes beside weights is never run. A model that would keep
some weights at random is refused.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.errors import some
from analysis.model_copy import convert
from flatlab.errors import UsageError, first_line
from flatlab.measuring.weights import load_weights

_PREFIXES = {"hf": ("transformers",), "timm": ("timm", "torchvision")}
"""Where models come from, and the packages that it takes; the extras of pyproject.toml have the same names."""

_LOSS_OF_TYPE = {"regression": "mse", "multi_label_classification": "binary_cross_entropy"}
_CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")
_TIMM_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_NO_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"


@dataclass(frozen=True)
class HubModel:
    """A model with its weights."""

    module: nn.Module
    loss: str  # in analysis.losses.LOSSES; what it is trained on
    notes: tuple[str, ...]  # what there is to say of it, a sentence each


def names_hub_model(name: object) -> bool:
    """Whether `name` is of the form hf:NAME or timm:NAME."""
    return isinstance(name, str) and name.partition(":")[0] in _PREFIXES and ":" in name


def open_hub_model(name: str, dtype: torch.dtype = torch.float32) -> HubModel:
    """Load the model, its weights in `dtype`; `name` as `names_hub_model` knows it.

    Raises `UsageError` where a package is missing, there is no such model, it cannot be downloaded, its weights are
    not complete, or it brings code of its own.
    """
    prefix, _, rest = name.partition(":")
    if not rest:
        raise UsageError(f"{name} names no model: write {prefix}:NAME, or {prefix}:./folder.")
    library = _library(prefix, name)
    folder = _folder(prefix, rest)
    try:
        with _quiet(library):
            return (_hugging_face if prefix == "hf" else _timm)(library, folder or rest, name, dtype)
    except UsageError:
        raise
    except Exception as error:  # whatever a library finds wrong with a name, a file or the network
        advice = "" if folder else f" Without a network, name a folder that holds it: {prefix}:./folder."
        raise UsageError(f"The model {name} cannot be had: {first_line(error)}.{advice}") from error


def _library(prefix: str, name: str) -> Any:
    try:
        return [import_module(package) for package in reversed(_PREFIXES[prefix])][-1]
    except Exception as error:  # a torchvision made for another torch raises RuntimeError
        raise UsageError(
            f"{name} needs {' and '.join(_PREFIXES[prefix])}: pip install 'flatlab[{prefix}]'. ({first_line(error)})"
        ) from error


def _folder(prefix: str, rest: str) -> Path | None:
    """The folder that is meant, which begins with a dot, a slash or ~; None for a name on the hub."""
    if rest.startswith((".", "/", "~")):
        folder = Path(rest).expanduser()
        if not folder.is_dir():
            raise UsageError(f"There is no folder {rest} with a model in it.")
        return folder
    if Path(rest).is_dir():
        raise UsageError(
            f"There is a folder {rest} here: write {prefix}:./{rest} for it, or go elsewhere for the hub's model."
        )
    return None


def _hugging_face(transformers: Any, source: str | Path, name: str, dtype: torch.dtype) -> HubModel:
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    kind = _class_of(transformers, config, name)
    saved = config.dtype
    module, loaded = kind.from_pretrained(
        source,
        config=config,
        dtype=dtype,  # at once, so that tables that the model computes are not rounded first
        attn_implementation="sdpa" if kind._supports_sdpa else "eager",  # not what the file names
        weights_only=True,
        output_loading_info=True,
    )
    if missing := sorted(loaded["missing_keys"]):
        raise UsageError(f"The model {name} has no weights for {some(missing, 3)}, which would be random.")
    if hasattr(module.config, "use_cache"):
        module.config.use_cache = False  # keys and values kept for generation
    notes = []
    if saved in (torch.float16, torch.bfloat16):
        kinds = [str(kind).removeprefix("torch.") for kind in (saved, dtype)]
        notes.append(f"The {kinds[0]} weights of {name} are raised to {kinds[1]}, exactly.")
    if saved == torch.float64 and dtype == torch.float32:
        notes.append(f"The float64 weights of {name} are rounded to float32; --dtype float64 keeps them.")
    if left := sorted(loaded["unexpected_keys"]):
        notes.append(f"Beside the model's weights, {name} holds {some(left, 3)}, left unread.")
    loss = _loss_of(transformers, config, kind)
    if loss == "next_token" and module.loss_type is None:  # of names that end in LMHeadModel
        module.loss_type = "ForCausalLM"
    return HubModel(module, loss, tuple(notes))


def _class_of(transformers: Any, config: Any, name: str) -> Any:
    """The class of transformers that the configuration names; never one that comes with the weights."""
    for architecture in config.architectures or ():
        kind = getattr(transformers, architecture, None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            return kind
    raise UsageError(
        f"The configuration of {name} names {some(config.architectures or ['no class'], 3)}, which transformers "
        f"{transformers.__version__} does not have: build the model in a function, and name that with --model."
    )


def _loss_of(transformers: Any, config: Any, kind: type) -> str:
    known = transformers.models.auto.modeling_auto
    if kind.__name__ in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return "next_token"
    from_sequences = (
        known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        known.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    )
    if config.is_encoder_decoder and any(kind.__name__ in names.values() for names in from_sequences):
        return "own_per_label"  # its decoder's inputs are made of the labels, which only its own loss is given
    problem = getattr(config, "problem_type", None)
    if problem is None and kind.__name__.endswith(_CLASSIFIERS) and config.num_labels == 1:
        problem = "regression"  # as these classes conclude themselves
    return _LOSS_OF_TYPE.get(problem or "", "cross_entropy")


def _timm(timm: Any, source: str | Path, name: str, dtype: torch.dtype) -> HubModel:
    if isinstance(source, str):
        known = f"hf-hub:{source}" if "/" in source else source
        return HubModel(_converted(timm.create_model(known, pretrained=True), dtype), "cross_entropy", ())
    module = _converted(timm.create_model(f"local-dir:{source}", pretrained=False), dtype)
    files = [source / file for file in _TIMM_WEIGHTS if (source / file).is_file()]
    if not files:
        raise UsageError(f"The folder {source} holds no weights: {' or '.join(_TIMM_WEIGHTS)}.")
    return HubModel(module, "cross_entropy", tuple(load_weights(module, files[0], name)))


def _converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    convert(module, torch.device("cpu"), dtype)
    return module


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Within the block the libraries show no progress and no advice, and ask for no conversion of weights elsewhere."""
    loggers = [logging.getLogger(name) for name in ("transformers", "timm", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars: Any = library.utils.logging if library.__name__ == "transformers" else None
    shown = bool(bars and bars.is_progress_bar_enabled())
    converting = os.environ.get(_NO_CONVERSION)
    os.environ[_NO_CONVERSION] = "1"
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    if shown:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if converting is None:
            del os.environ[_NO_CONVERSION]
        else:
            os.environ[_NO_CONVERSION] = converting
