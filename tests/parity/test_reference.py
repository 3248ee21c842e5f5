"""benchmarks/reference/plain_ctm.py against the official code: one step, and eight in a row."""

import torch

from ctm.bench.learners import plain_module

from . import vectors
from .test_training import DTYPES, Official, grid_of, settings_of, times_of


def plain_files() -> list[str]:
    """The steps without any of the official switches."""
    entries = vectors.manifest()
    configs = {name: entries[f"{name}.safetensors"]["config"] for name in vectors.names("train_ctm_*")}
    return [name for name, config in configs.items() if not config["overrides"] and not config.get("lpips")]


def plain_of(nets: Official, levels: dict, config: dict):
    """The reference on the official networks."""
    settings = {"grid_points": config["N"], "most_steps": config["N"] - 1, "lr": config.get("lr", 1e-3)}
    settings |= {"target_ema": config.get("target_ema", 0.95), "ema": 0.999}
    plain = plain_module().Plain(nets.student.network, nets.teacher.network, **levels, **settings)
    plain.target = nets.target.network
    return plain


@vectors.each_precision(plain_files(), single=("train_ctm_default",))
def test_one_step(name, precision):
    with vectors.open_file(name, ignore=("*",)) as file:
        dtype, levels = DTYPES[precision], settings_of(file.config)
        nets = Official(dtype, levels=levels)
        plain = plain_of(nets, levels, file.config)
        times = times_of(grid_of(file.config, dtype, levels), file["in/idx"], file["in/s_idx"], file.config["u"])

        def compare(key, value):
            if f"{precision}/{key}" in file:
                file.compare(f"{precision}/{key}", value.detach(), hint=None)

        x0, labels, noise = nets.x0, nets.labels, nets.noise
        x_t = x0 + times.t[:, None, None, None] * noise
        with torch.no_grad():
            x_u = plain_module().heun_walk(plain.teacher, x_t, times.path, labels, plain.sigma_data)
            compare("x_t_dt", x_u)
            compare("estimate", plain.estimate(x_t, times.t, times.s, labels))
            compare("target", plain.matching_target(x_u, times.u, times.s, labels))
            compare("consistency_loss", plain.matching(x0, noise, times.path, times.s, labels))
        whole, _, weight, _ = plain.losses(x0, labels, noise, times.path, times.s, nets.dsm_noise, nets.dsm_sigma)
        compare("adaptive_weights", weight.reshape(1))
        compare("loss", whole)
        with torch.no_grad():
            compare("denoising_loss", weight * plain.score_matching(x0, nets.dsm_noise, nets.dsm_sigma, labels))
        whole.backward()
        gradients = {key: p.grad for key, p in nets.student.network.named_parameters()}
        compare("grad_norms", nets.norms(gradients))
        compared = {label.split(" in ")[0].removeprefix(f"{precision}/") for label in file.errors}
        assert {"consistency_loss", "denoising_loss", "loss", "grad_norms"} <= compared


@vectors.each_precision(vectors.names("train_run*"))
def test_a_run(name, precision):
    """Optimiser and target over all steps of the file."""
    with vectors.open_file(name, ignore=("*",)) as file:
        config, dtype, levels = file.config, DTYPES[precision], settings_of(file.config)
        nets = Official(dtype, levels=levels)
        plain, grid, found = plain_of(nets, levels, config), grid_of(config, dtype, levels), []
        for step in range(config["steps"]):
            x, noise, dsm_noise, sigma = (file[f"in/{key}"][step].to(dtype) for key in ("x", "nz", "dn", "ds"))
            times = times_of(grid, file["in/idx"][step], file["in/sidx"][step], int(file["in/u"][step]))
            labels = file["in/y"][step] if "in/y" in file else None
            whole, _, weight, _ = plain.losses(x, labels, noise, times.path, times.s, dsm_noise, sigma)
            plain.update(whole)
            found.append((whole.detach(), weight.reshape(1)))
        losses, weights = (torch.stack(values) for values in zip(*found, strict=True))
        file.compare(f"{precision}/loss", losses)
        file.compare(f"{precision}/adaptive", weights)
        for who, network in (("model", plain.student), ("target", plain.target)):
            named = nets.official(network, dict(network.named_parameters()))
            norms = torch.stack([named[key].norm() for key in nets.order]).detach()
            file.compare(f"{precision}/{who}_param_norms", norms)
            for key in file.keys(f"{precision}/{who}/"):
                file.compare(key, named[key.removeprefix(f"{precision}/{who}/")].detach())
