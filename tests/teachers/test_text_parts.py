"""The text encoder and tokenizer of a pipeline, from files that do not fit, lead elsewhere, or ask for more than is read."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ctm.teachers.diffusers_text import embed_prompts

from ..text_pipeline import TOKENS, text_encoder_for, tokenizer_in

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
PROMPTS = ["a seven", ""]
JUNK = {f"junk.{number}": torch.zeros(1000) for number in range(16)}  # as many tensors and numbers as are missing


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The files of a text encoder and tokenizer as their library writes them, and what they give for PROMPTS."""
    place = tmp_path_factory.mktemp("text") / "pipe"
    torch.manual_seed(0)
    tokenizer = tokenizer_in(place / "words")
    encoder = text_encoder_for(tokenizer)
    tokenizer.save_pretrained(place / "tokenizer")
    encoder.save_pretrained(place / "text_encoder")
    (place / "model_index.json").write_text(json.dumps(INDEX))
    ids = tokenizer(PROMPTS, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
    with torch.no_grad():
        return place, encoder(ids)[0]


@pytest.fixture
def place(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "pipe")


def change_tensors(place, change):
    file = place / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    save_file(change(tensors), file, metadata={"format": "pt"})


def change_json(file, **entries):
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def without(tensors, part):
    return {name: value for name, value in tensors.items() if part not in name}


def broken(tensors, name, value):
    return {**tensors, name: torch.full_like(tensors[name], value)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: {**without(t, "layers.0"), **JUNK}, "16 tensors are missing, first encoder.layers.0"),
        (lambda t: {f"x.{name}": value for name, value in t.items()}, "36 tensors are missing.*36 are not of it"),
        (lambda t: {**t, "more": torch.zeros(3)}, "1 are not of it, first more"),
        (lambda t: {**t, "final_layer_norm.bias": torch.zeros(17)}, r"final_layer_norm.bias is \[17\], the network's \[16\]"),
        (lambda t: broken(t, "final_layer_norm.weight", float("nan")), "final_layer_norm.weight is not finite"),
        (lambda t: {**t, "text_model.final_layer_norm.bias": torch.zeros(16)}, "has a tensor twice"),
    ],
    ids=["missing", "renamed", "unexpected", "shape", "nan", "twice"],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(place, change, sentence):
    """transformers fills what is missing with random numbers."""
    change_tensors(place, change)
    with pytest.raises(ValueError, match=sentence):
        embed_prompts(place, PROMPTS)


@pytest.mark.parametrize("form", ["now", "older"])
def test_weights_are_read_in_both_forms(made, place, form):
    """Files of transformers before version 5 have a prefix, and those of still older ones the positions as whole numbers."""
    if form == "older":
        positions = {"text_model.embeddings.position_ids": torch.arange(TOKENS)[None]}
        change_tensors(place, lambda t: {**{f"text_model.{name}": value for name, value in t.items()}, **positions})
    assert torch.allclose(embed_prompts(place, PROMPTS), made[1], atol=1e-6)


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"attn_implementation": "evil/kernel"}, "asks for kernels from elsewhere .attn_implementation: evil/kernel"),
        ({"_attn_implementation": "evil/kernel"}, "asks for kernels from elsewhere"),
        ({"_attn_implementation": {"": "evil/kernel"}}, "asks for kernels from elsewhere"),
        ({"attn_implementation": "flash_attention_2"}, "asks for kernels from elsewhere"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "its weights are quantized"),
        ({"auto_map": {"AutoModel": "evil.Net"}}, "asks for code of its own"),
        ({"extra": [{"auto_map": {"AutoModel": "evil.Net"}}]}, "asks for code of its own"),
        ({"model_type": "bert"}, "none of a CLIPTextModel"),
        ({"hidden_act": "os.system"}, "hidden_act is one of quick_gelu"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps is a number from 0 to 1"),
        ({"num_attention_heads": True}, "num_attention_heads is a whole number"),
        ({"num_attention_heads": 3}, "none of a CLIPTextModel: .*multiple"),
        ({"vocab_size": 0}, "vocab_size is a whole number from 1 to 2.20, got 0"),
        ({"vocab_size": 1 << 20}, "asks for more than its weights hold"),
    ],
)
def test_settings_that_ask_for_something_else_are_refused(place, entries, sentence):
    change_json(place / "text_encoder" / "config.json", **entries)
    with pytest.raises(ValueError, match=sentence):
        embed_prompts(place, PROMPTS)


def test_an_unknown_setting_is_named_and_changes_nothing(made, place, caplog):
    change_json(place / "text_encoder" / "config.json", gates=3)
    change_json(place / "tokenizer" / "tokenizer_config.json", ropes=3)
    with caplog.at_level(logging.WARNING):
        assert torch.allclose(embed_prompts(place, PROMPTS), made[1], atol=1e-6)
    assert [message.split(": ")[-1] for message in caplog.messages] == ["ropes", "gates"]


def test_other_files_in_the_folders_are_not_used(made, place, tmp_path):
    """An adapter, pieces of other weights, another tokenizer: transformers would look into each of them."""
    adapter = {
        "base_model_name_or_path": str(tmp_path / "elsewhere"),
        "peft_type": "LORA",
        "target_modules": ["q_proj"],
    }
    (place / "text_encoder" / "adapter_config.json").write_text(json.dumps(adapter))
    pieces = {"metadata": {}, "weight_map": {"final_layer_norm.weight": "../../../etc/passwd"}}
    (place / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(pieces))
    for name in ("tokenizer.9.0.0.json", "tekken.json", "tokenizer.model"):
        (place / "tokenizer" / name).write_text("{")
    elsewhere = {
        name: str(place / "tokenizer" / "tekken.json") for name in ("tokenizer_file", "vocab_file", "gguf_file")
    }
    change_json(
        place / "tokenizer" / "tokenizer_config.json",
        fast_tokenizer_files=["tokenizer.9.0.0.json"],
        init_inputs=[{"<|startoftext|>": 0}],
        **elsewhere,
    )
    assert torch.allclose(embed_prompts(place, PROMPTS), made[1], atol=1e-6)


def test_a_tokenizer_of_another_vocabulary_is_refused(place):
    file = place / "tokenizer" / "tokenizer.json"
    settings = json.loads(file.read_text())
    settings["model"]["vocab"] = {word: number + 1000 for word, number in settings["model"]["vocab"].items()}
    for token in settings["added_tokens"]:
        token["id"] += 1000
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"gives the token 10.., and its text encoder knows those from 0 to 63"):
        embed_prompts(place, PROMPTS)


def test_a_damaged_tokenizer_is_refused(place):
    (place / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer cannot be read: "):
        embed_prompts(place, PROMPTS)
    change_json(place / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    with pytest.raises(ValueError, match="asks for code of its own"):
        embed_prompts(place, PROMPTS)


def test_what_is_cut_of_a_text_is_said(made, caplog):
    """Each of these words is one token, and a text has a start and an end."""
    words = ["seven", "one", "two", "six", "nine", "four", "ten"]
    assert len(words[:-1]) == TOKENS - 2
    with caplog.at_level(logging.WARNING):
        fits = embed_prompts(made[0], [" ".join(words[:-1])])
        assert caplog.messages == []
        longer = embed_prompts(made[0], [" ".join([*words[:-1], "one", "six"])])
        assert torch.equal(fits, longer)
        embed_prompts(made[0], ["one", "two " * 12, "six " * 9])
    assert caplog.messages == [
        "the text 'seven one two six nine four one six' is too long for the text encoder: the last 2 of its tokens are left out",
        "2 of 3 texts are too long for the text encoder: the last 3 to 6 of their tokens are left out; the first is 'two two "
        "two two two two two two two two …'",
    ]
