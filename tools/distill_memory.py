"""Memory of a step of distillation on a network of some size: all weights trained, or adapters (LoRA), each with and without
computing blocks again in the backward pass.

Usage: python tools/distill_memory.py [--channels 128] [--batch 4] [--rank 16]

Each of the four runs in a process of its own. Held: weights and averages (each tensor once), gradients, optimiser state, after a
step, in bytes. Activations: what autograd keeps of the step's forward pass, apart. Peak: the process's, in a step. cpu_seconds:
processor time of the second step."""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from ctm import DiffusionModel
from ctm.networks import DDPMpp
from ctm.terminal.recipe_parser import parse_recipe
from ctm.training import assembly, trainer

SIZES = {"channel_mult": [2, 2, 2], "blocks": 4, "attention": [16]}  # with 128 channels EDM's network for CIFAR-10
RECIPE = """
data: {{name: digits, size: 32, channels: 3, batch_size: {batch}}}
network: {{class_path: ctm.networks.DDPMpp, init_args: {sizes}}}
teacher: {teacher}
objectives:
  - {{class_path: ctm.objectives.Matching, init_args: {{grid_points: 10, solver_steps: 1}}}}
  - {{class_path: ctm.objectives.DenoisingScoreMatching}}
optimizer: {{class_path: torch.optim.RAdam, init_args: {{lr: 1.0e-4}}}}
"""


def size_of(tensors) -> int:
    """Bytes of different storages."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def measured(recipe_text: str, extra: list[str]) -> dict:
    """The numbers of one process."""
    recipe, _ = parse_recipe(["--config", recipe_text, *extra])
    run = assembly.prepare(recipe, Accelerator(cpu=True), assembly.load_data(recipe))
    for group in run.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    models = [model for model in (run.student, run.target, run.teacher, *run.averages) if model is not None]
    weights = [t for model in models for t in (*model.parameters(), *model.buffers())]
    own, kept = {t.untyped_storage().data_ptr() for t in weights}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = trainer._batch(run, 0, trainer._parts(run)[0])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run.module(batch, run.target, run.teacher, {})
    run.module.outputs.clear()
    trainer._step(run, 0)  # optimiser state and kernels are made in the first step
    started = time.process_time()
    trainer._step(run, 1)
    seconds = time.process_time() - started
    state = [v for held in run.optimizer.state.values() for v in held.values() if isinstance(v, torch.Tensor)]
    return {
        "parameters": sum(p.numel() for p in run.student.parameters()),
        "trained": sum(p.numel() for group in run.optimizer.param_groups for p in group["params"]),
        "checkpoint": sum(
            t.numel() * t.element_size() for t in run.parts(gather=False)[0]["ema"].state_dict().values()
        ),
        "weights": size_of(weights),
        "gradients": size_of([p.grad for p in run.student.parameters() if p.grad is not None]),
        "optimizer": size_of(state),
        "activations": sum(kept.values()),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "cpu_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measured(**json.loads(options.one))))
        return
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"channels": options.channels, **SIZES}
        network = DDPMpp((3, 32, 32), 10, **sizes, s_embedding=False)
        DiffusionModel(network, shape=(3, 32, 32), num_classes=10).save_pretrained(Path(folder) / "teacher")
        del network
        text = RECIPE.format(batch=options.batch, sizes=json.dumps(sizes), teacher=Path(folder) / "teacher")
        adapters, again = ["--lora.rank", str(options.rank)], ["--engine.checkpoint_gradients", "true"]
        kinds = {"whole": [], "whole, again": again, "adapters": adapters, "adapters, again": [*adapters, *again]}
        for name, extra in kinds.items():
            asked = json.dumps({"recipe_text": text, "extra": extra})
            done = subprocess.run(
                [sys.executable, __file__, "--one", asked], check=True, capture_output=True, text=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            held = found["weights"] + found["gradients"] + found["optimizer"]
            shown = ", ".join(f"{k} {v / 1e6:.1f} M" if k != "cpu_seconds" else f"{v:.1f} s" for k, v in found.items())
            print(f"{name}: held {held / 1e6:.1f} MB; {shown}", flush=True)


if __name__ == "__main__":
    main()
