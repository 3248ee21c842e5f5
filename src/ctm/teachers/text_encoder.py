"""The text encoder of a pipeline of diffusers: a CLIPTextModel of transformers, built from settings that were checked and filled
from one file. transformers itself opens none of its files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from ctm.foreign.text import plain, read_json
from ctm.foreign.weights import tensor_shapes
from ctm.models.reading import TooLarge, bounded_building, check_names, check_weights
from ctm.teachers.diffusers_files import Parts
from ctm.teachers.library_settings import refuse_requests

__all__ = ["WEIGHTS", "read_text_encoder"]

WEIGHTS = "model.safetensors"
_LOG = logging.getLogger(__name__)
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_MOST = 1 << 20
_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
_KIND = "clip_text_model"
_CHANGE_NOTHING = {  # of a text's embedding outside of training
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "attn_implementation"),
    *("attention_dropout", "dropout", "initializer_factor", "initializer_range", "projection_dim"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "output_attentions", "output_hidden_states", "return_dict"),
}
_POSITIONS = "embeddings.position_ids"  # whole numbers in files of older transformers: 0, 1, 2, …
_PREFIX = "text_model."


def read_text_encoder(parts: Parts) -> Any:
    """The text encoder in eval mode, float32: a CLIPTextModel, whose names and shapes are those of its weights.

    Raises ValueError, in a sentence, for settings that are not those of a CLIPTextModel, ask for code, for other weights or for
    more than the weights hold; for weights with other names or shapes, and for weights that are not finite."""
    place = f"{parts.source}/text_encoder"
    config, weights = parts.file("text_encoder", "config.json"), parts.file("text_encoder", WEIGHTS)
    if config is None or weights is None:
        raise ValueError(f"{place} needs config.json and {WEIGHTS}, weights that are no pickle")
    settings = _checked(read_json(config), place)
    try:
        return _filled(settings, weights, place)
    except TooLarge as error:
        raise ValueError(f"{place}: its config asks for more than its weights hold") from error
    except (SafetensorError, RuntimeError, TypeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"{place}: its weights do not fit its config: {plain(str(error), 200)}") from error


def _checked(settings: object, place: str) -> dict[str, Any]:
    """What a CLIPTextModel is built from. Raises ValueError for values of another kind or out of range; settings that are not
    known are named in a warning."""
    if not isinstance(settings, dict) or settings.get("model_type", _KIND) != _KIND:
        raise ValueError(f"{place}: its config is none of a CLIPTextModel (model_type: {_KIND})")
    refuse_requests(settings, place)
    found = {name: settings[name] for name in _SIZES if name in settings}
    for name, value in found.items():
        if type(value) is not int or not 1 <= value <= _MOST:
            raise ValueError(f"{place}: {name} is a whole number from 1 to 2^20, got {plain(str(value), 40)}")
    activation, smallest = settings.get("hidden_act", _ACTIVATIONS[0]), settings.get("layer_norm_eps", 1e-5)
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{place}: hidden_act is one of {', '.join(_ACTIVATIONS)}, got {plain(str(activation), 40)}")
    if type(smallest) not in (int, float) or not 0 <= smallest <= 1:
        raise ValueError(f"{place}: layer_norm_eps is a number from 0 to 1, got {plain(str(smallest), 40)}")
    known = {*found, "hidden_act", "layer_norm_eps", *_CHANGE_NOTHING}
    unknown = [plain(name, 40) for name in settings if name not in known and not name.startswith("_")]
    if unknown:
        words = "config.json has settings that this version does not know; they change nothing"
        _LOG.warning("%s: %s: %s", place, words, ", ".join(unknown[:8]))
    return {**found, "hidden_act": activation, "layer_norm_eps": float(smallest)}


def _filled(settings: Mapping[str, Any], weights: Path, place: str) -> Any:
    from accelerate import init_empty_weights

    shapes = _by_name(tensor_shapes(weights), place)
    with bounded_building(shapes), init_empty_weights(include_buffers=False):
        encoder = _build(settings, place)
    own = {_plainly(name): name for name in encoder.state_dict() if not name.endswith(_POSITIONS)}
    check_names({name: tuple(encoder.state_dict()[full].shape) for name, full in own.items()}, shapes, place)
    tensors = _by_name(load_file(weights), place)
    check_weights(tensors, place)
    encoder.load_state_dict({own[name]: tensor.float() for name, tensor in tensors.items()}, strict=False, assign=True)
    return encoder.eval().requires_grad_(False)


def _build(settings: Mapping[str, Any], place: str) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    marks = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}  # for the pooled text, which is not used
    arguments: dict[str, Any] = {**settings, **marks, "attn_implementation": "sdpa"}
    try:
        config = CLIPTextConfig(**arguments)
        return CLIPTextModel(config)
    except TooLarge:
        raise
    except Exception as error:  # of transformers, which raises kinds of its own for sizes that do not go together
        reason = plain(f"{type(error).__name__}: {error}", 200)
        raise ValueError(f"{place}: its config is none of a CLIPTextModel: {reason}") from error


def _plainly(name: str) -> str:
    """A tensor's name without the prefix that files of transformers before version 5 have."""
    return name.removeprefix(_PREFIX)


def _by_name(tensors: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The tensors by their plain names, without the numbers of the positions. Raises ValueError where one is there twice."""
    found = {_plainly(name): tensor for name, tensor in tensors.items() if _plainly(name) != _POSITIONS}
    if len(found) != sum(_plainly(name) != _POSITIONS for name in tensors):
        raise ValueError(f"{place}: {WEIGHTS} has a tensor twice, with and without {_PREFIX} before its name")
    return found
