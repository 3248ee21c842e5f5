"""Encode pictures once into the latents that a model is trained on."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from ctm.arguments import whole_number
from ctm.data import Images, load_images
from ctm.data.captions import load_captions, unique
from ctm.data.conditions import names_of
from ctm.data.encoding import Encoding
from ctm.data.latents import Texts, load_latents
from ctm.models.pipeline import Pipeline
from ctm.teachers.pipelines import autoencoder_in, embedded_by, find_autoencoder
from ctm.terminal.options import add_data_options, add_device_option, usable_device
from ctm.terminal.parser import Parser, command_parser
from ctm.terminal.paths import check_place

__all__ = ["parser", "run"]


def parser() -> Parser:
    result = command_parser(
        "latents",
        "Encode the pictures of a data set once by an AutoencoderKL of diffusers, with their labels, captions and fields. The "
        "result is a directory for --data.name of ctm train. The autoencoder is in it, and decodes what is sampled later. "
        "docs/data.md says what is kept.",
        "ctm latents --vae sd-vae-ft-mse --data pictures --size 256 --out pictures-latents",
    )
    add = result.add_argument
    add("--vae", type=str, required=True, help="directory or hub id of an AutoencoderKL, or of a pipeline that has one")
    add("--data", type=str, required=True, help="pictures, as of ctm train: a name, folder, file or hub id")
    add("--out", type=str, required=True, help="a new directory")
    add("--size", type=int | list[int] | None, default=None, help="side of square pictures, or [height, width]")
    add("--split", type=str, default=None, help="train or test, where the data have both")
    add_data_options(result)
    words = (
        "the column of captions, or a text with {} for the name of the class; embedded by the pipeline's text encoder"
    )
    add("--caption", type=str, default=None, help=words)
    words = "take a draw from the encoder's distribution with this seed (default: its mean)"
    add("--draw", type=int, default=None, metavar="SEED", help=words)
    add("--batch_size", type=int, default=16, help="pictures encoded at once")
    add_device_option(result)
    return result


def run(settings: Namespace) -> None:
    """Read, encode, write. Raises ValueError, FileNotFoundError and ImportError with a sentence."""
    out, batch_size = Path(settings.out), whole_number(settings.batch_size)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} is there already: give a new name, or remove it first")
    check_place(out)
    if batch_size is None or batch_size < 1 or (settings.draw is not None and settings.draw < 0):
        raise ValueError("--batch_size is a whole number from 1 on, and --draw one from 0 on")
    pipeline, device = find_autoencoder(settings.vae), usable_device(settings.device)
    if settings["caption"] is not None and not pipeline.reads_text:
        raise ValueError(
            f"--caption {settings['caption']}: {settings.vae} has no tokenizer and text encoder that would embed captions: give "
            "the directory of a whole pipeline, or leave --caption out"
        )
    channels = autoencoder_in(pipeline).channels
    named = settings["data_condition"]
    options = {name: settings[f"data_{name}"] for name in ("image", "label", "max_gb")}
    options["condition"] = None if named is None else [name.strip() for name in named.split(",")]
    known = channels if channels in (1, 3) else None
    images = load_images(settings.data, settings.size, known, settings.split, **options)
    texts = None if settings["caption"] is None else _texts(settings, images, pipeline)
    pipeline = pipeline if texts is not None else pipeline.only(str(pipeline.autoencoder))
    about = {"vae": settings.vae, "data": settings.data}
    shape = Encoding(images, pipeline, texts, settings.draw, batch_size, device, about).write(out)
    found = load_latents(out)
    held = [*(["labels"] if found.labels is not None else []), *names_of(found.fields)]
    print(
        f"written: {out}, {shape[0]} latents of shape {list(shape[1:])}, standard deviation {found.deviation():g}"
        + (f", with {', '.join(held)}" if held else "")
    )
    print(f"train on them by --data.name {out}; samples are decoded by the autoencoder in it")


def _texts(settings: Namespace, images: Images, pipeline: Pipeline) -> Texts:
    """The captions of the pictures, each text embedded once; "" is no text."""
    texts, numbers = unique(load_captions(settings.data, images, settings["caption"], settings.split))
    return Texts(embedded_by(pipeline, texts or [""]).numpy(), numbers)
