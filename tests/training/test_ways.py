"""The ways to teach a jump as docs/ways.md has them: each entry trains, and two processes make the step of one."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ctm import DiffusionModel, TrajectoryModel
from ctm.networks import MLP, DDPMpp
from ctm.objectives import DistributionMatching, Eulerian, Lagrangian, Matching, Networks, Semigroup
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import train
from ctm.training.ema import frozen_copy

from ..conftest import mostly_slow, random_weights
from .runs import RECIPES, SMALL, finish, rows, start, teacher_arguments, trained, weights

PAGE = Path(__file__).parents[2] / "docs" / "ways.md"
SECTIONS = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
FOUND = {text.partition("\n")[0]: re.search(r"```yaml\n(.*?)```", text, flags=re.DOTALL) for text in SECTIONS}
ENTRIES = {name: entry[1] for name, entry in FOUND.items() if entry is not None}
GUIDED = ("--network.init_args.guidance_embedding", "true")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("teacher"), teacher_arguments("--steps", "2"))


def arguments(name: str, teacher: Path, place: Path, *extra: str) -> list[str]:
    """The recipe digits-ctm with the page's objectives in place of its own, small."""
    text = yaml.safe_load((RECIPES / "digits-ctm.yaml").read_text(encoding="utf-8")) | yaml.safe_load(ENTRIES[name])
    (place / "recipe.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    guided = GUIDED if "guidance_embedding" in ENTRIES[name] else ()
    own = ["--config", str(place / "recipe.yaml"), *SMALL, *guided, "--teacher", str(teacher)]
    return [*own, "--condition_dropout", "0.3", *extra]


@pytest.mark.parametrize("name", mostly_slow(ENTRIES, "Lagrangian", "Semigroup", "Stored walks"))
def test_every_entry_of_the_page_trains(name, teacher, tmp_path, monkeypatch):
    """With classes: labels go to student and teacher."""
    monkeypatch.chdir(tmp_path)
    out = trained(tmp_path / "run", arguments(name, teacher, tmp_path, "--steps", "10", "--log_every", "1"))
    last = rows(out)[-1]
    losses = [value for key, value in last.items() if key.startswith("loss/")]
    assert len(losses) == len(yaml.safe_load(ENTRIES[name])["objectives"])
    assert all(0 < value < 1e4 for value in losses)
    assert last["skipped"] == 0


TOGETHER = {  # each way once; Lagrangian apart, because it goes through the last layer twice
    "Lagrangian": """
        - {class_path: Lagrangian, init_args: {guidance: [1, 3], estimate: true}}
        - {class_path: DenoisingScoreMatching, init_args: {guidance: [1, 3]}}
        - {class_path: Adversarial, init_args: {discriminator: {class_path: ctm.discriminators.MLPDiscriminator},
           augmentation: [], alternate: false}}
        """,
    "the others": """
        - {class_path: Eulerian}
        - {class_path: Semigroup}
        - {class_path: Matching, init_args: {grid_points: 6, targets: 2, grow: 2}}
        - {class_path: DenoisingScoreMatching}
        - {class_path: StoredWalks, init_args: {folder: FOLDER, walks: 64, levels: 5}}
        - {class_path: DistributionMatching, init_args: {fake_steps: 1, divergence: jensen_shannon}}
        - {class_path: Adversarial, init_args: {discriminator: {class_path: ctm.discriminators.MLPDiscriminator},
           augmentation: [], alternate: false, judges: sample}}
        """,
    "score identity": """
        - {class_path: DistributionMatching, init_args: {fake_steps: 1, loss: sid}}
        """,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Lagrangian", "the others"])
def test_two_processes_make_the_step_of_one(name, teacher, tmp_path):
    """Through gloo, with adaptive weights, players and half of the batch each: to float tolerance the weights of one process."""
    given = together(name, teacher, tmp_path, "--steps", "2", "--seed", "2")
    finish(start(given, tmp_path / "two", 2))
    one, two = weights(trained(tmp_path / "one", given)), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5)
    checkpoint = Path("checkpoints/00000002")
    for file in (tmp_path / "one" / checkpoint).glob("*.safetensors"):
        other = load_file(tmp_path / "two" / checkpoint / file.name)
        for key, value in load_file(file).items():
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-4)


def together(name: str, teacher: Path, place: Path, *extra: str) -> list[str]:
    """The recipe digits-ctm with these objectives, small, for a student that takes a guidance scale where one is drawn."""
    text = yaml.safe_load((RECIPES / "digits-ctm.yaml").read_text(encoding="utf-8"))
    text["objectives"] = yaml.safe_load(TOGETHER[name].replace("FOLDER", str(place / "walks")))
    (place / "recipe.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    guided = GUIDED if "guidance" in TOGETHER[name] else ()
    own = ["--config", str(place / "recipe.yaml"), *SMALL, *guided, "--teacher", str(teacher)]
    return [*own, "--condition_dropout", "0.3", *extra]


def test_score_identity_distillation_trains_alone(teacher, tmp_path):
    out = trained(tmp_path / "run", together("score identity", teacher, tmp_path, "--steps", "3", "--log_every", "1"))
    last = rows(out)[-1]
    assert last["skipped"] == 0
    assert {"loss/DistributionMatching", "fake_score/loss"} <= last.keys()
    assert weights(out).keys() == weights(teacher).keys() | {key for key in weights(out) if ".s_" in key}


UNET = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (4,)}
EACH = {
    "Lagrangian": Lagrangian(estimate=True),
    "Eulerian": Eulerian(estimate=True),
    "Semigroup": Semigroup(estimate=True),
    "Matching": Matching(grid_points=6, targets=2),
    "DMD": DistributionMatching(divergence="jensen_shannon"),
    "SiD": DistributionMatching(loss="sid"),
}


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("network", ["MLP", "U-Net"])
def test_every_way_goes_through_mlps_and_u_nets_with_attention(name, network):
    """Forward and backward with classes: a finite loss for each image, and a gradient for each weight but those of t or s alone
    that the way does not use."""
    shape, way = (1, 8, 8), EACH[name]
    torch.manual_seed(0)
    student, teacher = (
        random_weights(kind(made, shape=shape, num_classes=3))
        for kind, made in (
            (TrajectoryModel, MLP(shape, 3, width=16, blocks=1) if network == "MLP" else DDPMpp(shape, 3, **UNET)),
            (
                DiffusionModel,
                MLP(shape, 3, width=16, blocks=1, s_embedding=False)
                if network == "MLP"
                else DDPMpp(shape, 3, **UNET, s_embedding=False),
            ),
        )
    )
    networks = Networks(student, frozen_copy(student), teacher, {})
    player = way.player()
    if player is not None:
        networks = replace(networks, players={player.name: player.build(networks)})
    x0, labels = torch.rand(3, *shape) * 2 - 1, torch.tensor([0, 2, -1])
    losses = way(networks, x0, labels, way.draw(student, x0, torch.Generator().manual_seed(0)))
    assert losses.shape == (3,)
    assert bool(losses.isfinite().all())
    losses.mean().backward()
    found = [p.grad for p in student.parameters() if p.grad is not None]
    assert len(found) == len(list(student.parameters()))
    assert all(bool(gradient.isfinite().all()) for gradient in found)


@pytest.mark.parametrize("name", ["Lagrangian", "Eulerian"])
def test_compilation_that_would_not_take_place_is_refused(name, teacher, tmp_path):
    recipe, text = parse_recipe(arguments(name, teacher, tmp_path, "--engine.compile", "eager"))
    with pytest.raises(
        ValueError, match=f"engine.compile does not go with {name}: torch.compile leaves a network uncompiled"
    ):
        train(recipe, tmp_path / "run", text)
