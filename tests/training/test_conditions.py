"""Runs on conditions that are fields of an .npz: what is kept, dropped, continued, refused and shown, and that a student
learns the conditional flow of a Gaussian that is known in closed form."""

import itertools
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ctm import Arrays, Labels, karras_grid, sampling
from ctm.cli import main
from ctm.commands import sample
from ctm.conditioner import conditioner_from
from ctm.data import load_images
from ctm.data.images import to_model_range
from ctm.evaluation import sources
from ctm.models import load_model
from ctm.teachers import ConditionalGaussian
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import sample_grids, trainer
from ctm.training.assembly import load_data, prepare

from .runs import (
    OFTEN,
    RECIPES,
    assert_same,
    everything,
    finish,
    kill_at_random,
    rows,
    start,
    student_arguments,
    teacher_arguments,
    trained,
    weights,
)

BOTH = {"observation": (3,), "map": (2, 4, 4)}
CLASSES = np.arange(24) % 3


def write_set(path: Path, seed: int = 0, **further: np.ndarray) -> Path:
    """24 grey 4×4 pictures of three classes with an observation, a map of their size, and another vector."""
    generator = np.random.default_rng(seed)
    arrays = {name: generator.normal(size=(24, *shape)).astype(np.float32) for name, shape in BOTH.items()}
    pictures = generator.integers(0, 256, (24, 4, 4), dtype=np.uint8)
    other = generator.normal(size=(24, 3))
    np.savez(path, images=pictures, labels=CLASSES, other=other, **(arrays | further))
    return path


def on(path: Path, *names: str, steps: int = 2) -> list[str]:
    """The arguments of a short run on a set and its fields."""
    fields = ["--data.condition", json.dumps(list(names))] if names else []
    return ["--data.name", str(path), "--data.batch_size", "8", "--steps", str(steps), *fields]


@pytest.fixture
def data(tmp_path) -> Path:
    return write_set(tmp_path / "set.npz")


@pytest.fixture
def teacher(tmp_path, data) -> Path:
    return trained(tmp_path / "teacher", teacher_arguments(*on(data, "observation", "map")))


def test_config_json_keeps_what_a_run_was_conditioned_on(teacher):
    config = json.loads((teacher / "model" / "config.json").read_text())
    expected = Labels(3) | Arrays(BOTH)
    assert conditioner_from(config["conditioner"]) == expected
    model = load_model(teacher)
    assert model.conditioner == expected
    assert model.network.fields == BOTH


def test_ctm_sample_takes_the_fields_of_a_file(teacher, data, tmp_path):
    """A sample's picture depends on its row: the first and the third row of the file are the same, the second is another."""
    with np.load(data) as stored:
        np.savez(tmp_path / "asked.npz", **{name: stored[name][[0, 1, 0]] for name in BOTH})
    model = load_model(teacher)
    with torch.no_grad():  # two steps leave a last layer of nearly nothing: what a field does would not be seen
        model.network.last.weight.normal_()
    model.save_pretrained(tmp_path / "model")
    asked = [str(tmp_path / "model"), "--seeds", "4,4,4", "--labels", "1", "--steps", "5"]
    asked += ["--condition", str(tmp_path / "asked.npz"), "--out", str(tmp_path / "drawn.npz")]
    sample.run(sample.parser().parse_args(asked))
    with np.load(tmp_path / "drawn.npz") as drawn:
        first, second, third = drawn["arr_0"].astype(int)
    assert np.abs(first - third).max() <= 1  # rounding: one row and another of a batch
    assert np.abs(first - second).max() > 4


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_dropout_leaves_out_the_condition_at_its_rate(data, rate):
    """All fields and the label of a row go together; values stay, and the first step's draw is that of any later look."""
    arguments = teacher_arguments(*on(data, "observation", "map"), "--condition_dropout", str(rate))
    recipe, _ = parse_recipe([*arguments, "--data.batch_size", "1000"])
    run = prepare(recipe, Accelerator(cpu=True), load_data(recipe))
    shares = []
    for step in range(4):
        found = trainer._batch(run, step, slice(0, 1000)).condition
        if rate == 0:
            assert set(found) == {"observation", "map", "labels"}
            continue
        there = found["observation_present"]
        assert torch.equal(there, found["map_present"])
        assert torch.equal(there, found["labels"] >= 0)
        whole = load_data(recipe).fields["observation"]
        assert {tuple(row) for row in found["observation"].tolist()} <= {tuple(row) for row in whole.tolist()}
        shares.append(1 - there.float().mean().item())
    if rate:
        deviation = (rate * (1 - rate) / 4000) ** 0.5
        assert abs(sum(shares) / 4 - rate) < 4 * deviation
        assert len(set(shares)) > 1


def test_dropout_by_name_leaves_each_field_out_by_itself_at_its_rate(data):
    """Shares of 4,000 rows within four standard deviations, of rows that lack both, too: independent, so the product. A
    name that is not given is never left out. Another order of the same names draws the same."""
    shares = {"labels": 0.3, "observation": 0.2}
    found = []
    for given in (shares, dict(reversed(shares.items()))):
        arguments = teacher_arguments(*on(data, "observation", "map"), "--condition_dropout", json.dumps(given))
        recipe, _ = parse_recipe([*arguments, "--data.batch_size", "4000"])
        run = prepare(recipe, Accelerator(cpu=True), load_data(recipe))
        found.append(trainer._batch(run, 0, slice(0, 4000)).condition)
    gone = {"labels": found[0]["labels"] < 0, "observation": ~found[0]["observation_present"]}
    expected = {"labels": 0.3, "observation": 0.2, "both": 0.3 * 0.2}
    for name, rate in expected.items():
        share = (gone["labels"] & gone["observation"] if name == "both" else gone[name]).float().mean().item()
        assert abs(share - rate) < 4 * (rate * (1 - rate) / 4000) ** 0.5, name
    assert "map_present" not in found[0]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            '{"observatoin": 0.1}',
            "condition_dropout names 'observatoin', and the condition of .* is labels, observation: give",
        ),
        ('{"labels": 1.5}', r"condition_dropout.labels must be in \[0, 1\], got 1.5"),
    ],
)
def test_dropout_by_a_name_or_a_share_that_cannot_be_is_refused(data, given, said):
    def begin():
        recipe, _ = parse_recipe(teacher_arguments(*on(data, "observation"), "--condition_dropout", given))
        prepare(recipe, Accelerator(cpu=True), load_data(recipe))

    with pytest.raises(ValueError, match=said):
        begin()


def test_a_dropped_row_trains_the_network_without_its_fields(data, tmp_path):
    """At dropout 1 the field's own layers get no gradient and stay as they were drawn, while the row for its absence moves; at
    dropout 0 it is the other way round."""
    name = "network.conditions.vectors.observation"
    arguments = teacher_arguments(*on(data, "observation"), "--ema", "0")
    runs = {}
    for rate, steps in itertools.product(("1.0", "0.0"), ("1", "12")):
        more = ["--condition_dropout", rate, "--steps", steps]
        runs[rate, steps] = weights(trained(tmp_path / f"{rate}-{steps}", [*arguments, *more]))
    layer = {key: found[f"{name}.first.weight"] for key, found in runs.items()}
    absent = {key: found[f"{name}.absent"] for key, found in runs.items()}
    assert torch.equal(layer["1.0", "12"], layer["1.0", "1"])
    assert not torch.equal(layer["0.0", "12"], layer["0.0", "1"])
    assert absent["1.0", "12"].abs().max() > 0
    assert torch.equal(absent["0.0", "12"], torch.zeros_like(absent["0.0", "12"]))


def fields_student(teacher: Path, data: Path, steps: int) -> list[str]:
    """The arguments of a student's run that is broken and continued; one step of the teacher for each image."""
    one_step = ["--objectives.Matching.kind", "local"]
    return [*student_arguments(teacher, *on(data, *BOTH, steps=steps)), *OFTEN, *one_step]


@pytest.mark.slow
def test_a_broken_run_on_fields_goes_on_to_the_bits_of_an_unbroken_one(teacher, data, tmp_path, monkeypatch):
    arguments, take = fields_student(teacher, data, 20), trainer._step

    def broken(run, step):
        if step == 13:
            raise MemoryError("killed")
        return take(run, step)

    monkeypatch.setattr(trainer, "_step", broken)
    with pytest.raises(MemoryError):
        trained(tmp_path / "parts", arguments)
    monkeypatch.setattr(trainer, "_step", take)
    trained(tmp_path / "parts", arguments)
    trained(tmp_path / "whole", arguments)
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_rows_without_a_field_are_trained_on_without_it(data, tmp_path, caplog):
    """Of the 24 rows 6 have no observation: what stands there is nothing. Dropout adds to this."""
    with np.load(data) as stored:
        observation = stored["observation"].copy()
    present = np.arange(24) % 4 != 1
    observation[~present] = np.nan
    write_set(data, observation=observation, observation_present=present)
    arguments = teacher_arguments(*on(data, *BOTH), "--condition_dropout", "0.5")
    out = trained(tmp_path / "run", arguments)
    assert "observation is absent in 6 of 24 rows" in caplog.text
    assert load_model(out).conditioner == Labels(3) | Arrays(BOTH)
    recipe, _ = parse_recipe([*arguments, "--data.batch_size", "240"])
    images = load_data(recipe)
    found = trainer._batch(prepare(recipe, Accelerator(cpu=True), images), 0, slice(0, 240)).condition
    with np.load(data) as stored:
        absent = {tuple(row.flatten().tolist()) for row in stored["map"][~present]}
    rows_without = torch.tensor([tuple(row.flatten().tolist()) in absent for row in found["map"]])
    assert rows_without.sum() == 60
    assert not found["observation_present"][rows_without].any()
    assert torch.equal(found["observation_present"], found["map_present"] & ~rows_without)
    assert 60 < found["map_present"].sum() < 180
    write_set(data, observation=observation, observation_present=~present)
    with pytest.raises(
        ValueError,
        match=r"observation of item 1, counted from 0, is not finite: leave such items out, scale them, or say False",
    ):
        load_data(recipe)
    write_set(data, observation_present=present[:5])
    with pytest.raises(ValueError, match="observation_present must be 24 times true or false, got bool"):
        load_data(recipe)


def test_a_run_does_not_go_on_with_other_rows_absent(data, tmp_path):
    write_set(data, observation_present=np.arange(24) < 12)
    trained(tmp_path / "run", teacher_arguments(*on(data, *BOTH)))
    write_set(data, observation_present=np.arange(24) < 13)
    with pytest.raises(ValueError, match=r"changed since is the data \("):
        trained(tmp_path / "run", teacher_arguments(*on(data, *BOTH, steps=4)))


@pytest.mark.slow
def test_a_killed_run_on_fields_ends_with_the_bits_of_an_unbroken_one(teacher, data, tmp_path):
    arguments = fields_student(teacher, data, 60)
    kill_at_random(start(arguments, tmp_path / "parts"), tmp_path / "parts", 30)
    finish(start(arguments, tmp_path / "parts"))
    trained(tmp_path / "whole", arguments)
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: on(data, "other", "map", steps=4),
        lambda data: on(data, "map", "observation", steps=4),  # layers are drawn in the fields' order
        lambda data: on(data, "observation", steps=4),
        lambda data: on(data, steps=4),
    ],
    ids=["another", "order", "fewer", "none"],
)
def test_a_run_goes_on_with_its_own_fields_alone(teacher, data, change):
    with pytest.raises(ValueError, match=r"changed since is the data \(data\.condition"):
        trained(teacher, teacher_arguments(*change(data)))


def test_a_run_does_not_go_on_with_other_values_of_a_field(teacher, data):
    with np.load(data) as stored:
        observation = stored["observation"].copy()
    observation[5, 1] += 1
    write_set(data, observation=observation)
    with pytest.raises(ValueError, match=r"changed since is the data \("):
        trained(teacher, teacher_arguments(*on(data, "observation", "map", steps=4)))


def test_a_student_learns_from_a_conditional_teacher(teacher, data, tmp_path, capsys):
    out = trained(tmp_path / "run", student_arguments(teacher, *on(data, "observation", "map", "other")))
    printed = capsys.readouterr().out
    assert "the teacher does not know other: it teaches without" in printed
    assert load_model(out).conditioner == Labels(3) | Arrays(BOTH | {"other": (3,)})
    with pytest.raises(ValueError, match=r"the teacher is conditioned on 'map' \[2, 4, 4\], the data have none"):
        trained(tmp_path / "without", student_arguments(teacher, *on(data, "observation")))
    flat = np.zeros((24, 2), dtype=np.float32)
    with pytest.raises(ValueError, match=r"conditioned on 'observation' \[3\], the data have it as \[2\]"):
        trained(
            tmp_path / "other", student_arguments(teacher, *on(write_set(tmp_path / "b.npz", observation=flat), *BOTH))
        )


def with_discriminator(name: str, **arguments) -> list[str]:
    """The objectives of a run with a discriminator from the second step on."""
    discriminator = {"class_path": f"ctm.discriminators.{name}", "init_args": arguments}
    adversarial = {"discriminator": discriminator, "augmentation": ["colour"], "start": 1, "alternate": False}
    objectives = [
        {"class_path": "ctm.objectives.Matching", "init_args": {"grid_points": 10, "kind": "local"}},
        {"class_path": "ctm.objectives.Adversarial", "init_args": adversarial},
    ]
    return ["--objectives", json.dumps(objectives)]


PROJECTED = {"backbones": [{"class_path": "ctm.backbones.TeacherEncoder"}], "mixed_channels": 8, "width": 8}
DISCRIMINATORS = [
    ("MLPDiscriminator", {"width": 16}, list(BOTH)),
    ("ProjectedDiscriminator", PROJECTED, ["observation"]),
]


@pytest.mark.parametrize(("name", "arguments", "names"), DISCRIMINATORS, ids=["plain", "projected"])
def test_a_discriminator_learns_from_the_fields(data, tmp_path, name, arguments, names):
    """In a run without labels: its weights for the fields move, those of their absence too."""
    with np.load(data) as stored:
        np.savez(tmp_path / "plain.npz", **{key: stored[key] for key in stored.files if key != "labels"})
    place = on(tmp_path / "plain.npz", *names, steps=6)
    teacher = trained(tmp_path / "teacher", teacher_arguments(*place))
    more = [*with_discriminator(name, **arguments), "--condition_dropout", "0.5", "--checkpoint_every", "1"]
    run = trained(
        tmp_path / "run", student_arguments(teacher, *place, *more, "--log_every", "1", "--keep_checkpoints", "9")
    )
    states = [load_file(next((run / "checkpoints" / f"{step:08d}").glob("discriminator*"))) for step in (1, 6)]
    fields = [key for key in states[0] if "fields.vectors.observation" in key and "_u" not in key and "_v" not in key]
    assert any(key.endswith("absent") for key in fields)
    moved = [key for key in fields if not torch.equal(states[0][key], states[1][key])]
    assert any("first" in key for key in moved)
    assert any(key.endswith("absent") for key in moved)
    assert all(row["skipped"] == 0 for row in rows(run) if "skipped" in row)


@pytest.mark.parametrize(
    ("name", "arguments", "more", "message"),
    [
        ("ProjectedDiscriminator", PROJECTED, [], "which take no map beside them, and the data have map: use ctm"),
        (
            "MLPDiscriminator",
            {},
            ["--objectives.Adversarial.augmentation", '["colour", "translation"]'],
            "augmentation translates the images and not the map 'map' beside them: leave translation out",
        ),
    ],
)
def test_a_discriminator_that_cannot_take_a_field_is_refused(teacher, data, tmp_path, name, arguments, more, message):
    asked = [*on(data, *BOTH), *with_discriminator(name, **arguments), *more]
    with pytest.raises(ValueError, match=message):
        trained(tmp_path / "run", student_arguments(teacher, *asked))


def test_mirrored_pictures_do_not_go_with_maps(data, tmp_path):
    with pytest.raises(ValueError, match=r"not the field 'map' of their condition: set data\.flip to false"):
        trained(tmp_path / "run", teacher_arguments(*on(data, "map"), "--data.flip", "true"))


@pytest.mark.slow
def test_each_column_of_a_grid_has_one_condition(data, tmp_path, monkeypatch):
    """Its class, and the fields of the first picture of the class, in every row of the grid."""
    drawn, generate = [], sample_grids.generate

    def noted(model, count, **options):
        drawn.append(options["condition"])
        return generate(model, count, **options)

    monkeypatch.setattr(sample_grids, "generate", noted)
    teacher = trained(tmp_path / "teacher", teacher_arguments(*on(data, "observation", "map")))
    trained(tmp_path / "run", student_arguments(teacher, *on(data, "observation", "map")))
    classes = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]  # their first pictures are numbers 0, 1 and 2
    with np.load(data) as stored:
        expected = {name: torch.from_numpy(stored[name][classes]) for name in BOTH} | {"labels": torch.tensor(classes)}
    assert len(drawn) == 1 + 4
    for times, condition in zip([2, 1, 1, 1, 1], drawn, strict=True):
        assert condition.keys() == expected.keys()
        for name, values in expected.items():
            assert torch.equal(condition[name], torch.cat([values] * times))


@pytest.mark.slow
def test_a_runs_own_evaluation_is_under_the_fields_of_its_rows(data, tmp_path, monkeypatch, session_cache):
    monkeypatch.setenv("CTM_CACHE", str(session_cache))
    drawn, draw = [], sources.draw

    def noted(model, indices, **options):
        drawn.append(options["condition"])
        return draw(model, indices, **options)

    monkeypatch.setattr(sources, "draw", noted)
    evaluation = {"every": 2, "num": 16, "steps": 2, "features": "classifier"}
    trained(tmp_path / "run", teacher_arguments(*on(data, *BOTH), "--evaluation", json.dumps(evaluation)))
    rows = sources.label_rows(load_images(str(data)), 16, 0)
    with np.load(data) as stored:
        for name in BOTH:
            assert torch.equal(drawn[0][name], torch.from_numpy(stored[name][rows]))
    assert drawn[0]["labels"].tolist() == CLASSES[rows].tolist()


def test_the_pages_commands_and_code_run(tmp_path, monkeypatch):
    """The section on conditions in docs/training.md, with few steps; all but its evaluation, which tests/evaluation runs."""
    page = (RECIPES.parent / "docs" / "training.md").read_text()
    section = page[page.index("## Conditions") : page.index("## A run directory")]
    make, use, some = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    commands = [line.split("ctm ", 1)[1] for line in section.splitlines() if line.startswith("ctm ")]
    assert [command.split()[0] for command in commands] == ["train", "train", "sample", "evaluate"]
    monkeypatch.chdir(tmp_path)
    exec(make, {})
    for command in commands[:3]:
        few = ["--steps", "3"] if command.startswith("train") else []
        assert main([*shlex.split(command), *few]) == 0
    exec(use, {})
    exec(some, {})
    images = load_images("digits-some.npz", condition=["ink", "half"])
    assert 0.85 < images.fields["half_present"].mean() < 0.95


# Against a truth


def gaussian() -> ConditionalGaussian:
    """Pictures of 1×2×2 values, well within [−1, 1], whose mean moves by up to ±0.6 with y."""
    matrix = torch.tensor([[0.2, 0.0], [0.0, 0.2], [0.15, 0.15], [0.1, -0.2]]).reshape(1, 2, 2, 2)
    return ConditionalGaussian(matrix, torch.tensor([0.1, 0.0, -0.1, 0.0]).reshape(1, 2, 2), 0.1)


def write_gaussian(path: Path, n: int) -> Path:
    """n draws as bytes: a step of 2/255 adds a deviation of 0.0023 to one of 0.1."""
    x, condition = gaussian().sample(n)
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert (to_model_range(pixels) - x).abs().mean() < 0.003
    np.savez(path, images=pixels.numpy(), y=condition["y"].numpy())
    return path


def flow_error(model, asked, known=lambda y: {"y": y}, n: int = 1000) -> float:
    """Root mean square error of the way from sigma_max to sigma_min, by one jump or by Heun, relative to the data's deviation.

    asked: the condition that the model gets of y; known: the condition of the exact flow that it is compared with."""
    truth, y = gaussian(), torch.randn(n, 2, generator=torch.Generator().manual_seed(5))
    x = 80 * torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(6))
    high, low = torch.full((n,), 80.0), torch.full((n,), 0.002)
    exact = truth.jump(x, high, low, known(y))
    with torch.no_grad():
        if hasattr(model, "jump"):
            made = model.jump(x, high, low, asked(y))
        else:
            made = sampling.heun(model, x, karras_grid(20), condition=asked(y))
    return (made - exact).square().mean().sqrt().item() / truth.sigma_data


def gaussian_run(path: Path, steps: int, s_embedding: bool) -> list[str]:
    """The arguments of a run on draws of the Gaussian with their y."""
    network = {"width": 64, "blocks": 2, "embedding": 32, "s_embedding": s_embedding}
    few = ["--decay_fraction", "0.4", "--sample_minutes", "null", "--ema", "0.97", "--model.sigma_data", "0.3"]
    few += ["--data.batch_size", "256", "--network.init_args", json.dumps(network)]
    return [*on(path, "y", steps=steps), *few, "--optimizer.init_args.lr", "5e-3"]


@pytest.mark.slow
def test_a_teacher_learns_where_the_condition_puts_the_data(tmp_path):
    """Measured: 0.19. A teacher that did not use y would miss by y's share of the deviation, 0.9."""
    data = write_gaussian(tmp_path / "set.npz", 4000)
    model = load_model(trained(tmp_path / "run", teacher_arguments(*gaussian_run(data, 200, False))))
    assert flow_error(model, lambda y: {"y": y}) < 0.4
    assert flow_error(model, lambda y: {"y": -y}) > 1.2


@pytest.mark.slow
def test_a_student_learns_the_flow_with_the_condition_and_without(tmp_path):
    """Measured, with the condition and without: the teacher 0.04 and 0.13, one jump of the student 0.15 and 0.29. The condition
    is left out of a tenth of the rows, so what is without it is learnt from fewer."""
    data = write_gaussian(tmp_path / "set.npz", 4000)
    teacher = trained(tmp_path / "teacher", teacher_arguments(*gaussian_run(data, 800, False)))
    more = ["--objectives.Matching.max_solver_steps", "3"]
    student = trained(tmp_path / "run", student_arguments(teacher, *gaussian_run(data, 500, True), *more))
    for place, bounds in ((teacher, (0.1, 0.25)), (student, (0.3, 0.5))):
        model = load_model(place)
        assert flow_error(model, lambda y: {"y": y}) < bounds[0]
        assert flow_error(model, lambda y: None, lambda y: None) < bounds[1]
        assert flow_error(model, lambda y: None) > 0.7


def test_a_sequence_is_taken_by_the_transformer_alone(tmp_path, capsys):
    """docs/training.md: a field (N, L, D) goes into DiT, and the others refuse it in a sentence."""
    text = np.random.default_rng(1).normal(size=(24, 3, 5)).astype(np.float32)
    data = on(write_set(tmp_path / "set.npz", text=text), "text")
    small = (
        "{class_path: ctm.networks.DiT, init_args: {width: 16, blocks: 1, heads: 2, embedding: 8, s_embedding: false}}"
    )
    made = trained(tmp_path / "teacher", teacher_arguments(*data, "--network", small))
    assert load_model(made).conditioner == Labels(3) | Arrays({"text": (3, 5)})
    assert main(["train", *teacher_arguments(*data), "--out", str(tmp_path / "refused")]) == 2
    assert "the field 'text' has shape [3, 5]" in " ".join(capsys.readouterr().err.split())


def test_padding_that_a_mask_leaves_out_changes_nothing(tmp_path, capsys):
    """txt_mask in the data: whatever stands in the padding, the weights are the same; without the mask they are others."""
    generator = np.random.default_rng(1)
    text, mask = generator.normal(size=(24, 3, 5)).astype(np.float32), generator.random((24, 3)) < 0.5
    other = np.where(mask[..., None], text, np.nan)
    small = (
        "{class_path: ctm.networks.DiT, init_args: {width: 16, blocks: 1, heads: 2, embedding: 8, s_embedding: false}}"
    )
    made = {}
    for name, given in (
        ("a", {"text": text, "text_mask": mask}),
        ("b", {"text": other, "text_mask": mask}),
        ("c", {"text": text}),
    ):
        data = on(write_set(tmp_path / f"{name}.npz", **given), "text")
        made[name] = weights(trained(tmp_path / name, teacher_arguments(*data, "--network", small)))
    assert "text_mask" not in capsys.readouterr().out
    assert_same(made["a"], made["b"])
    assert any(not torch.equal(made["a"][key], made["c"][key]) for key in made["a"])


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones((24, 4), bool), r"text_mask must be 24 × 3 times true or false, got bool \(24, 4\)"),
        (np.ones((24, 3), np.float32), r"text_mask must be 24 × 3 times true or false, got float32"),
    ],
)
def test_a_mask_of_another_shape_is_refused(tmp_path, mask, words):
    path = write_set(tmp_path / "set.npz", text=np.zeros((24, 3, 5), np.float32), text_mask=mask)
    with pytest.raises(ValueError, match=words):
        load_images(str(path), condition=["text"])


def test_a_vector_has_no_mask(tmp_path):
    path = write_set(tmp_path / "set.npz", y=np.zeros((24, 5), np.float32), y_mask=np.ones((24, 5), bool))
    with pytest.raises(
        ValueError, match=r"y_mask says which entries of sequences \(24, L, …\) count, and y is \(24, 5\)"
    ):
        load_images(str(path), condition=["y"])
