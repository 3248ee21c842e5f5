"""Adaptive weights, schedules, averages, GAN losses, DiffAugment and feature distances against the official numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import conv2d

from ctm.backbones import IMAGENET, FunctionBackbone
from ctm.noise import match_dims
from ctm.objectives import Matching
from ctm.objectives.adversarial import Adversarial
from ctm.objectives.adversarial_losses import hinge_discriminator, hinge_generator
from ctm.objectives.augmentation import AugmentationDraw, augment
from ctm.objectives.balance import adaptive_weight
from ctm.objectives.features import FeatureDistance, PerceptualDistance
from ctm.training import DataSettings, Progressive, Recipe
from ctm.training.ema import move_average

from . import vectors
from .vectors import VectorFile

KINDS = ("math_losses_ema_gan",)
NOT_OURS = ("ema_scales/fixed_progdist/*",)  # the halving steps of progressive distillation, which ctm does not do


def hold_adaptive_weights(file: VectorFile) -> None:
    """The gradients are those of sc1·mean((Wa)²) and sc2·mean(sin(Wb)²)."""
    for name, (first, second) in file.config["adaptive_scales"].items():
        weight = file["adaptive/W"].clone().requires_grad_()
        losses = (
            first * (weight @ file["adaptive/a"]).square().mean(),
            second * (weight @ file["adaptive/b"]).sin().square().mean(),
        )
        g1, g2 = (torch.autograd.grad(loss, weight)[0] for loss in losses)
        file.compare(f"adaptive/{name}/g1", g1)
        file.compare(f"adaptive/{name}/g2", g2)
        file.compare(f"adaptive/{name}/weight", adaptive_weight(g1, g2))
        file.compare(f"adaptive/{name}/gan_clipped", adaptive_weight(g1, g2, low=0.01, high=10.0))


def adopted(weight, step: int, start: int, before: float = 0.0):
    """The official code's adopt_weight, by the objective's own rule."""
    return weight if Adversarial(start=start).active(step) else before


def hold_adoption(file: VectorFile) -> None:
    for key in file.keys("adopt/threshold"):
        start, before, weight = (
            float(part.strip("abcdefghijklmnopqrstuvwxyz")) for part in key.split("/")[1].split("_")
        )
        ours = [adopted(weight, int(step), int(start), before) for step in file["adopt/step"]]
        file.compare(key, torch.tensor(ours, dtype=torch.float64))


def hold_schedules(file: VectorFile) -> None:
    """Consistency training's grid and decay, and what a recipe without a schedule keeps fixed. The start decay, which no
    configuration names, is that of the fixed schedules."""
    steps = [int(step) for step in file["ema_scales/step"]]
    start_decay = float(file["ema_scales/fixed_fixed/ema"][0])
    about: dict[str, Any] = {"data": DataSettings(name="digits"), "network": None, "optimizer": torch.optim.RAdam}
    recipe = Recipe(**about, objectives=[Matching(grid_points=18)], target_ema=start_decay)
    fixed = torch.tensor([recipe.target_decay(step) for step in steps], dtype=torch.float64)
    schedule = Progressive(start=2, end=150, start_decay=start_decay)
    decays, points = (list(values) for values in zip(*(schedule(step, 1000) for step in steps), strict=True))
    file.compare("ema_scales/fixed_fixed/ema", fixed)
    file.compare("ema_scales/fixed_fixed/scales", torch.tensor([recipe.objectives_at(k)[0].grid_points for k in steps]))
    file.compare("ema_scales/fixed_progressive/ema", fixed)
    file.compare("ema_scales/fixed_progressive/scales", torch.tensor(points))
    file.compare("ema_scales/adaptive_progressive/ema", torch.tensor(decays, dtype=torch.float64))
    file.compare("ema_scales/adaptive_progressive/scales", torch.tensor(points))


def hold_averages(file: VectorFile) -> None:
    for key in file.keys("ema/rate"):
        average, model = (torch.nn.ParameterList(list(file[f"ema/{name}"])) for name in ("target", "source"))
        average = torch.nn.ParameterList([parameter.detach().clone() for parameter in average])
        move_average(average, model, float(key.removeprefix("ema/rate")))
        file.compare(key, torch.stack([parameter.detach() for parameter in average]))


def hold_gan_losses(file: VectorFile) -> None:
    real, fake = ([file[key] for key in file.keys(f"gan/logits_{which}_")] for which in ("real", "fake"))
    file.compare("gan/d_loss", hinge_discriminator(real, fake))
    file.compare("gan/g_loss", hinge_generator(fake))
    before = adopted(hinge_generator(fake), step=0, start=1)
    file.compare("gan/g_loss_before_start", torch.as_tensor(before, dtype=torch.float64))


def hold_augmentation(file: VectorFile) -> None:
    shift, offset = (
        torch.stack([file[f"diffaug/{name}_{axis}"].flatten() for axis in "xy"], dim=1)
        for name in ("translation", "offset")
    )
    colours = (file[f"diffaug/{name}"].flatten() for name in ("brightness", "saturation", "contrast"))
    size = file.config["diffaug"]["cutout_ratio"]
    file.compare("diffaug/out", augment(file["diffaug/x"], AugmentationDraw(*colours, shift, offset), size))


def hold_feature_distances(file: VectorFile) -> None:
    first, second = file["feat/W1"], file["feat/W2"]
    estimate, target = file["feat/estimate"], file["feat/target"]

    def stand_in(a, b):
        return (conv2d(a, first, stride=32) - conv2d(b, first, stride=32)).square().mean(dim=(1, 2, 3))

    def maps(images):
        return [conv2d(images, first, stride=32), conv2d(images, second, stride=16)]

    perceptual = PerceptualDistance(stand_in)(estimate, target)
    file.compare("feat/lpips_branch_loss", match_dims(file["feat/weights"], perceptual) * perceptual)
    backbones = (FunctionBackbone(maps, *IMAGENET), FunctionBackbone(maps))
    file.compare("feat/cnn_vit_branch_loss", FeatureDistance(backbones)(estimate, target))


@vectors.each("which", vectors.names("math_losses_ema_gan"))
def test_losses_averages_and_augmentation(which):
    with vectors.open_file(which, ignore=NOT_OURS) as file:
        hold_adaptive_weights(file)
        hold_adoption(file)
        hold_schedules(file)
        hold_averages(file)
        hold_gan_losses(file)
        hold_augmentation(file)
        hold_feature_distances(file)
