"""What a scheduler of diffusers says of the model that it was trained with: the preconditioning and the range of noise levels."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ctm.betas import SCHEDULES, BetaSchedule
from ctm.foreign.text import plain
from ctm.preconditioning import EDM, Flow, Preconditioning, VariancePreserving

__all__ = ["SCHEDULERS", "Schedule", "read_scheduler"]

_VP = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
)
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
SCHEDULERS = (*_VP, *_EDM, *_FLOW)
"""The schedulers that are read, by the names of their classes."""

_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
_BETAS = tuple(entry.name for entry in fields(BetaSchedule) if entry.init)
_SAMPLING = (  # what changes a sample, and belongs to diffusers' sampler and not to the model
    "clip_sample",
    "clip_sample_range",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "skip_prk_steps",
    "interpolation_type",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "sigma_schedule",
    "rho",
    "final_sigmas_type",
    "variance_type",
    "solver_order",
    "algorithm_type",
    "solver_type",
    "lower_order_final",
    "euler_at_final",
    "stochastic_sampling",
    "shift_terminal",
)
_REFUSED: Mapping[str, tuple[Any, ...]] = {  # settings that make another model, and the values with which they do not
    "timestep_type": ("discrete",),
    "invert_sigmas": (False,),
    "use_dynamic_shifting": (False,),
}


@dataclass(frozen=True)
class Schedule:
    """What a scheduler's settings say. told: sentences on what the settings gave. assumed: on what diffusers' own defaults gave.
    kept: settings of diffusers' samplers, which ours do not apply."""

    inner: Preconditioning
    sigma_min: float
    sigma_max: float
    sigma_data: float | None = None
    told: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)


def read_scheduler(config: Any, place: str) -> Schedule:
    """The schedule of a scheduler_config.json that was read. What it leaves out has diffusers' default.

    Raises ValueError, naming the place, for a scheduler that is not in `SCHEDULERS` and for settings that make another model."""
    name = config.get("_class_name") if isinstance(config, Mapping) else None
    if not isinstance(name, str) or name not in SCHEDULERS:
        shown = plain(name) if isinstance(name, str) else "no scheduler of diffusers"
        raise ValueError(f"{place} names {shown}: what is read here is {', '.join(SCHEDULERS)}")
    settings, assumed = _with_defaults(name, config)
    try:
        for setting, allowed in _REFUSED.items():
            if settings.get(setting, allowed[0]) not in allowed:
                raise ValueError(f"{setting} is {plain(str(settings[setting]))}, with which no model is read here")
        if name in _EDM:
            schedule = _edm(settings)
        elif name in _FLOW:
            schedule = _flow(settings, float(_number(settings, "shift")))
        elif settings.get("use_flow_sigmas") or settings["prediction_type"] == "flow_prediction":
            if not settings.get("use_flow_sigmas") or settings["prediction_type"] != "flow_prediction":
                raise ValueError("use_flow_sigmas and the prediction_type flow_prediction belong together")
            schedule = _flow(settings, float(_number(settings, "flow_shift")))
        else:
            schedule = _vp(settings, assumed)
    except ValueError as error:
        raise ValueError(f"{place} ({name}): {error}") from error
    kept = {setting: config[setting] for setting in _SAMPLING if config.get(setting) is not None}
    return Schedule(
        schedule.inner,
        schedule.sigma_min,
        schedule.sigma_max,
        schedule.sigma_data,
        schedule.told,
        assumed + schedule.assumed,
        {"name": name, **{setting: value for setting, value in kept.items() if _is_plain(value)}},
    )


def _with_defaults(name: str, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings with diffusers' defaults of this scheduler, and a sentence for those that a model depends on."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f"a {name} needs diffusers: pip install 'ctm-torch[diffusers]'") from error
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    defaults = {entry: value.default for entry, value in known.items() if entry != "self"}
    missing = [entry for entry in (*_BETAS, "prediction_type", "shift") if entry in defaults and entry not in config]
    optional = ("trained_betas", "rescale_betas_zero_snr")
    lines = [
        f"{entry} = {defaults[entry]} (diffusers' default of {name}; its config does not say)"
        for entry in missing
        if entry not in optional
    ]
    return {**defaults, **{entry: value for entry, value in config.items() if entry in defaults}}, lines


def _vp(settings: Mapping[str, Any], assumed: list[str]) -> Schedule:
    prediction = _PREDICTIONS.get(str(settings["prediction_type"]))
    if prediction is None:
        raise ValueError(
            f"prediction_type is {plain(str(settings['prediction_type']))!r}: what is read here is {', '.join(_PREDICTIONS)}"
        )
    betas = {name: settings[name] for name in _BETAS if name in settings}
    if betas.get("trained_betas") is not None:
        listed = betas["trained_betas"]
        betas["num_train_timesteps"] = len(listed) if isinstance(listed, list | tuple) else 0
    elif betas["beta_schedule"] not in SCHEDULES:
        raise ValueError(
            f"beta_schedule is {plain(str(betas['beta_schedule']))!r}: what is read here is {', '.join(SCHEDULES)}"
        )
    table = BetaSchedule(**betas)
    low, high = table.sigmas[0], table.sigmas[-1]
    how = "trained_betas" if table.trained_betas is not None else f"the {table.beta_schedule} β schedule"
    told = [
        f"prediction: {prediction}, at {table.num_train_timesteps} timesteps of {how}",
        f"sigma_min = {low:.6g}, the first level of the schedule",
    ]
    if table.ends_without_signal:
        told.append(
            f"sigma_max = {high:.6g}: the last level has no signal (zero terminal SNR, sigma infinite) and is cut there"
        )
    else:
        told.append(f"sigma_max = {high:.6g}, the last level of the schedule")
    return Schedule(VariancePreserving(prediction, table), low, high, told=told)  # type: ignore[arg-type]


def _edm(settings: Mapping[str, Any]) -> Schedule:
    signs = {"epsilon": 1, "v_prediction": -1}
    prediction = str(settings["prediction_type"])
    if prediction not in signs:
        raise ValueError(f"prediction_type is {plain(prediction)!r}: what is read here is {', '.join(signs)}")
    low, high, data = (float(_number(settings, name)) for name in ("sigma_min", "sigma_max", "sigma_data"))
    told = [
        f"prediction: EDM's F{'' if prediction == 'epsilon' else ' with the other sign (v_prediction)'}, level ln(sigma)/4",
        f"sigma_min = {low:g}, sigma_max = {high:g}, sigma_data = {data:g}",
    ]
    return Schedule(EDM(data, signs[prediction]), low, high, data, told)


def _flow(settings: Mapping[str, Any], shift: float) -> Schedule:
    """τ = k/N for k = 1 … N are the levels; a shift multiplies σ = τ/(1 − τ) by itself. The last, τ = 1, is σ = ∞."""
    count = _number(settings, "num_train_timesteps")
    if not isinstance(count, int) or count < 2:
        raise ValueError(f"num_train_timesteps is a whole number of at least 2, got {plain(str(count))}")
    low, high = shift / (count - 1), shift * (count - 1)
    moved = "" if shift == 1 else f", moved by the shift {shift:g}"
    told = [
        f"prediction: the flow, noise less data, at tau = sigma/(1 + sigma); level {count}·tau",
        f"sigma_min = {low:.6g} (tau = 1/{count}{moved})",
        f"sigma_max = {high:.6g} (tau = {count - 1}/{count}{moved}): at tau = 1 sigma is infinite, and is cut there",
    ]
    return Schedule(Flow(float(count)), low, high, told=told)


def _number(settings: Mapping[str, Any], name: str) -> Any:
    value = settings[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6:
        raise ValueError(f"{name} is a number above 0 and at most 1e6, got {plain(str(value))}")
    return value


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 64)
