"""Directories that diffusers itself wrote, read as teachers: D against the formula, samplers against diffusers' schedulers."""

import json
import shutil

import diffusers
import huggingface_hub
import pytest
import torch

from ctm import DiffusionModel, load_model, load_teacher
from ctm.sampling import ancestral, dpmpp_2m, euler, heun
from ctm.teachers.diffusers import read_diffusers
from ctm.teachers.diffusers_scheduler import SCHEDULERS
from tests.diffusers_models import DIT, UNET, made_random

DATA = {"sigma_data": 0.5}
VP = {
    "DDPMScheduler": ("epsilon", "v_prediction", "sample"),
    "DDIMScheduler": ("epsilon", "v_prediction", "sample"),
    "PNDMScheduler": ("epsilon", "v_prediction"),
    "EulerDiscreteScheduler": ("epsilon", "v_prediction"),
    "EulerAncestralDiscreteScheduler": ("epsilon", "v_prediction"),
    "HeunDiscreteScheduler": ("epsilon", "v_prediction"),
    "DPMSolverMultistepScheduler": ("epsilon", "v_prediction", "sample"),
    "DPMSolverSinglestepScheduler": ("epsilon", "v_prediction", "sample"),
}
BETAS = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": [0.01 * k for k in range(1, 41)], "num_train_timesteps": 40},
    "zero-snr": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
}
FLOWS = [
    diffusers.FlowMatchEulerDiscreteScheduler(),
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0),
    diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    diffusers.DPMSolverSinglestepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
]


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A U-Net of diffusers with random weights, and the directory that it wrote itself into."""
    made = made_random(diffusers.UNet2DModel(**UNET))
    place = tmp_path_factory.mktemp("unet") / "unet"
    made.save_pretrained(place)
    return made, place


@pytest.fixture
def written(unet, tmp_path):
    """Write a pipeline's directory with another scheduler around the U-Net."""

    def write(scheduler, name="pipe", **index):
        place = tmp_path / name
        place.mkdir()
        (place / "unet").symlink_to(unet[1])
        scheduler.save_pretrained(place / "scheduler")
        parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", type(scheduler).__name__]}
        (place / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", **parts, **index}))
        return place

    return write


def x0_by_hand(prediction, a, b, z, output):
    """x_0 of a state z = a·x_0 + b·ε by what was predicted: the definitions of ε, v = a·ε − b·x_0 and of a flow ε − x_0."""
    return {
        "epsilon": lambda: (z - b * output) / a,
        "v_prediction": lambda: a * z - b * output,
        "sample": lambda: output,
        "flow": lambda: z - b * output,
    }[prediction]()


def check_d(model, unet, prediction, a, b, timesteps):
    """D(x, σ = b/a) against x_0 by hand: in float64 with the network called by hand, in float32 with the output that the model's
    network gave, since a network amplifies the rounding of its input."""
    generator = torch.Generator().manual_seed(3)
    data, noise = torch.randn(2, len(a), 1, 8, 8, dtype=torch.float64, generator=generator)
    a_, b_, sigma = a[:, None, None, None], b[:, None, None, None], b / a
    x = data / 2 + noise * sigma[:, None, None, None]
    calls = []
    model.network.module.register_forward_hook(lambda module, given, output: calls.append((*given, output[0])))
    with torch.no_grad():
        output = unet.double()(a_ * x, timesteps).sample
        found = model.double().denoise(x, sigma)
        float32 = model.float().denoise(x.float(), sigma.float())
    unet.float()
    z, level, seen = calls[-1]
    assert float((found - x0_by_hand(prediction, a_, b_, a_ * x, output)).abs().max()) <= 1e-9
    assert torch.allclose(z.double(), a_ * x, rtol=1e-6, atol=1e-6)
    assert torch.allclose(level.double(), timesteps.double(), rtol=1e-6, atol=0)
    by_hand = x0_by_hand(prediction, a_, b_, a_ * x.float().double(), seen.double())
    assert bool(((float32 - by_hand).abs().amax(dim=(1, 2, 3)) <= 1e-6 * (1 + sigma)).all())


PAIRS = [("DDIMScheduler", prediction, betas) for prediction in VP["DDIMScheduler"] for betas in BETAS]
PAIRS += [(name, p, "scaled_linear") for name, known in VP.items() for p in known if name != "DDIMScheduler"]


@pytest.mark.parametrize(("name", "prediction", "betas"), PAIRS)
def test_d_is_x0_by_hand_for_every_pair_of_scheduler_and_prediction(unet, written, name, prediction, betas):
    kind = getattr(diffusers, name)
    scheduler = kind(prediction_type=prediction, **BETAS[betas])
    model = load_teacher(written(scheduler), settings=DATA)
    alphas = scheduler.alphas_cumprod.double()
    chosen = torch.tensor([0, 1, len(alphas) // 2, len(alphas) - 2, len(alphas) - 1])
    alphas = torch.where(
        alphas[chosen] == 0, 2**-24, alphas[chosen]
    )  # the level without signal, as diffusers' own solvers cut it
    check_d(model, unet[0], prediction, alphas.sqrt(), (1 - alphas).sqrt(), chosen)
    assert model.sigma_max == pytest.approx(float(((1 - alphas) / alphas).sqrt()[-1]), rel=1e-12)


@pytest.mark.parametrize(
    "scheduler", FLOWS, ids=lambda scheduler: type(scheduler).__name__ + str(scheduler.config.get("shift"))
)
def test_d_of_a_flow_is_x0_by_hand(unet, written, scheduler):
    model = load_teacher(written(scheduler), settings=DATA)
    tau = torch.tensor([1e-3, 0.25, 0.5, 0.999], dtype=torch.float64)
    check_d(model, unet[0], "flow", 1 - tau, tau, 1000 * tau)
    shift = scheduler.config.get("shift", scheduler.config.get("flow_shift"))
    assert (model.sigma_min, model.sigma_max) == pytest.approx((shift / 999, shift * 999))
    assert model.sigma_max > 900


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_d_of_an_edm_scheduler_is_its_own(unet, written, name, prediction):
    """By the scheduler's precondition_inputs, precondition_noise and precondition_outputs themselves."""
    scheduler = getattr(diffusers, name)(prediction_type=prediction, sigma_data=0.7)
    model = load_teacher(written(scheduler))
    x, sigma = torch.randn(4, 1, 8, 8), torch.tensor([0.002, 0.3, 4.0, 80.0])
    assert (model.sigma_data, model.sigma_min, model.sigma_max) == (0.7, 0.002, 80.0)
    with torch.no_grad():
        found = model.denoise(x, sigma)
        for index, level in enumerate(sigma):
            z = scheduler.precondition_inputs(x[index : index + 1], level)
            output = unet[0](z, scheduler.precondition_noise(level)).sample
            expected = scheduler.precondition_outputs(x[index : index + 1], output, level)
            assert torch.allclose(found[index : index + 1], expected, atol=1e-6 * (1 + float(level)), rtol=0)


def test_every_scheduler_that_is_read_is_looked_at():
    edm = {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}
    assert set(SCHEDULERS) == edm | VP.keys() | {type(flow).__name__ for flow in FLOWS}


def by_diffusers(unet, scheduler, x, first=0, generator=None):
    """diffusers' own loop from the state x at its timestep number `first`, which is scaled as its scheduler has it."""
    scheduler.set_begin_index(first) if hasattr(scheduler, "set_begin_index") else None
    with torch.no_grad():
        for t in scheduler.timesteps[first:]:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            more = {} if generator is None else {"generator": generator}
            x = scheduler.step(unet(scaled, t).sample, t, x, **more).prev_sample
    return x


SMALL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SOLVERS = {
    "euler": (euler, diffusers.EulerDiscreteScheduler(**SMALL)),
    "euler-v": (euler, diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", **SMALL)),
    "euler-karras": (euler, diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, **SMALL)),
    "euler-zero-snr": (
        euler,
        diffusers.EulerDiscreteScheduler(
            rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing", **SMALL
        ),
    ),
    "heun": (heun, diffusers.HeunDiscreteScheduler(**SMALL)),
    "dpmpp_2m": (dpmpp_2m, diffusers.DPMSolverMultistepScheduler(**SMALL)),
    "dpmpp_2m-v": (dpmpp_2m, diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction", **SMALL)),
    "ancestral": (ancestral, diffusers.EulerAncestralDiscreteScheduler(**SMALL)),
    "edm-euler": (euler, diffusers.EDMEulerScheduler()),
    "edm-dpmpp_2m": (dpmpp_2m, diffusers.EDMDPMSolverMultistepScheduler()),
    "flow-euler": (euler, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_our_samplers_equal_diffusers_schedulers(unet, written, name):
    """From the same state at the first finite level. float64 here; diffusers rounds its levels to float32."""
    sampler, scheduler = SOLVERS[name]
    model = load_teacher(written(scheduler), settings=None if name.startswith("edm") else DATA).double()
    scheduler.set_timesteps(8)
    network = unet[0].double()
    sigmas = scheduler.sigmas.double()
    sigmas = sigmas[::2] if name == "heun" else sigmas
    if name == "heun":
        sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]]).double()
    first = 1 if name == "flow-euler" else 0  # there τ = 1 is σ = ∞
    grid = sigmas[first:]
    if name.startswith("flow"):
        grid = grid / (1 - grid)
    x = (1 + grid[0] ** 2).sqrt() * torch.randn(3, 1, 8, 8, dtype=torch.float64)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    state = x / (1 + grid[0]) if name.startswith("flow") else x
    if name.startswith("dpmpp"):  # its state is √ᾱ·x_0 + √(1−ᾱ)·ε
        state = x / (1 + grid[0] ** 2).sqrt()
    theirs = by_diffusers(network, scheduler, state, first, generators[0] if sampler is ancestral else None)
    drawn = {"noise": lambda like: torch.randn(like.shape, dtype=like.dtype, generator=generators[1])}
    ours = sampler(model, x, grid, **(drawn if sampler is ancestral else {}))
    unet[0].float()
    assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())


@pytest.mark.parametrize("zero", [False, True])
def test_euler_is_ddim(unet, written, zero):
    """DDIM has σ = ∞ in its first level where the schedule has no signal there: the first finite one is its second."""
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"} if zero else {}
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **SMALL, **settings)
    model = load_teacher(written(scheduler), settings=DATA).double()
    scheduler.set_timesteps(8)
    alphas = scheduler.alphas_cumprod.double()[scheduler.timesteps[int(zero) :]]
    grid = torch.cat([((1 - alphas) / alphas).sqrt(), torch.zeros(1, dtype=torch.float64)])
    x = (1 + grid[0] ** 2).sqrt() * torch.randn(3, 1, 8, 8, dtype=torch.float64)
    theirs = by_diffusers(unet[0].double(), scheduler, x * alphas[0].sqrt(), int(zero))
    unet[0].float()
    assert torch.allclose(euler(model, x, grid), theirs, atol=1e-4)


@pytest.mark.parametrize("pipeline", ["DDPMPipeline", "DDIMPipeline"])
def test_pipelines_of_pictures(pipeline, tmp_path):
    network = made_random(diffusers.UNet2DModel(**UNET))
    scheduler = (diffusers.DDPMScheduler if pipeline == "DDPMPipeline" else diffusers.DDIMScheduler)()
    getattr(diffusers, pipeline)(network, scheduler).save_pretrained(tmp_path)
    checkpoint = read_diffusers(tmp_path, settings=DATA)
    assert f"UNet2DModel of a {pipeline}, 8×8 with 1 channels, no classes" in checkpoint.found[0]
    assert any("fractional one" in line for line in checkpoint.found)
    assert any("clip_sample = True" in line and "timestep_spacing = leading" in line for line in checkpoint.left)
    assert checkpoint.model.extra_config["scheduler"]["clip_sample"] is True


def test_a_network_alone_with_its_scheduler_beside_it(unet, tmp_path):
    unet[0].save_pretrained(tmp_path)
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    assert isinstance(load_teacher(tmp_path, settings=DATA), DiffusionModel)


def test_labels_and_the_null_class(tmp_path, written):
    network = made_random(diffusers.UNet2DModel(**UNET, num_class_embeds=4))
    place = written(diffusers.DDPMScheduler())
    (place / "unet").unlink()
    network.save_pretrained(place / "unet")
    every, with_null = load_teacher(place, settings=DATA), load_teacher(place, settings=DATA | {"null_class": 3})
    assert (every.num_classes, with_null.num_classes) == (4, 3)
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 3.0])
    with torch.no_grad():
        none = every.denoise(x, sigma, torch.tensor([3, 3]))
        assert torch.equal(with_null.denoise(x, sigma), none)
        assert torch.equal(with_null.denoise(x, sigma, torch.tensor([-1, -1])), none)
        assert not torch.allclose(with_null.denoise(x, sigma, torch.tensor([0, 1])), none)


def test_dit_and_its_learned_variance(tmp_path):
    """DiTPipeline with an AutoencoderKL: labels with names, the null class, latents; the variance is dropped with a line."""
    network = made_random(diffusers.DiTTransformer2DModel(**DIT))
    vae = diffusers.AutoencoderKL(block_out_channels=[8], norm_num_groups=4, latent_channels=4)
    diffusers.DiTPipeline(network, vae, diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    names = {number: f"name {number}" for number in range(10)}
    index = json.loads((tmp_path / "model_index.json").read_text())  # published DiTs have their names there
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"id2label": names}))
    checkpoint = read_diffusers(tmp_path, settings={"sigma_data": 1.0})
    model = checkpoint.model
    assert (model.shape, model.num_classes) == ((4, 8, 8), 10)
    assert any("the variance that the network predicts too: channels 4 to 7" in line for line in checkpoint.left)
    assert any("the autoencoder (vae) that decodes them goes with the model" in line for line in checkpoint.found)
    assert list(model.pipeline.components) == ["vae"]
    x, sigma = torch.randn(2, 4, 8, 8), torch.tensor([0.5, 3.0])
    level = model.preconditioning.level(sigma)
    with torch.no_grad():
        z = x / (1 + sigma**2).sqrt()[:, None, None, None]
        output = network(z, level, torch.tensor([2, 10])).sample[:, :4]
        expected = x - sigma[:, None, None, None] * output
        assert torch.allclose(model.denoise(x, sigma, torch.tensor([2, -1])), expected, atol=1e-5)
    assert model.class_names == list(names.values())


def test_attention_by_its_names_before_diffusers_0_14(unet, written):
    from safetensors.torch import load_file, save_file

    place = written(diffusers.DDPMScheduler())
    new = load_teacher(place, settings=DATA)
    file = unet[1] / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in load_file(file).items():
        for ours, theirs in names.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        old[name] = tensor
    assert any(".proj_attn." in name for name in old)
    (place / "unet").unlink()
    (place / "unet").mkdir()
    (place / "unet" / "config.json").write_text((unet[1] / "config.json").read_text())
    save_file(old, place / "unet" / file.name, metadata={"format": "pt"})
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(load_teacher(place, settings=DATA).denoise(x, 1.0), new.denoise(x, 1.0))


def test_a_model_directory_of_it_needs_the_original_no_more(written, tmp_path):
    model = load_teacher(written(diffusers.DDIMScheduler(prediction_type="v_prediction")), settings=DATA)
    model.save_pretrained(tmp_path / "ours")
    found = load_model(tmp_path / "ours")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(found.denoise(x, 1.0), model.denoise(x, 1.0))
    assert found.extra_config["scheduler"]["name"] == "DDIMScheduler"


def test_sigma_data_is_asked_for_or_measured_and_never_guessed(written):
    place = written(diffusers.DDPMScheduler())
    with pytest.raises(
        ValueError, match=r"does not say the standard deviation of its data, sigma_data.*--set sigma_data="
    ):
        load_teacher(place)
    checkpoint = read_diffusers(place, sigma_data=lambda shape: (0.25, f"measured at {shape}"))
    assert checkpoint.model.sigma_data == 0.25
    assert checkpoint.assumed == ["sigma_data = 0.25 (measured at [1, 8, 8])"]


def test_levels_can_be_narrowed_and_not_widened(written):
    place = written(diffusers.DDPMScheduler())
    assert load_teacher(place, settings=DATA | {"sigma_max": 80.0}).sigma_max == 80
    with pytest.raises(ValueError, match=r"the model was trained from 0\.01"):
        load_teacher(place, settings=DATA | {"sigma_max": 800.0})


def test_a_hub_id_is_read_from_the_hubs_files(written, tmp_path, monkeypatch):
    """From the hub's own cache, as it lies on a disk after a download."""
    place = written(diffusers.DDPMScheduler())
    snapshot = tmp_path / "cache" / "models--somebody--ddpm" / "snapshots" / ("0" * 40)
    shutil.copytree(place, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = load_teacher("somebody/ddpm", settings=DATA)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model.denoise(x, 1.0), load_teacher(place, settings=DATA).denoise(x, 1.0))
    with pytest.raises(FileNotFoundError, match="somebody/other is no directory, and the hub does not give it"):
        load_teacher("somebody/other", settings=DATA)
