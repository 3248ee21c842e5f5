"""Samples of a Consistency Trajectory Model from its ONNX graph: python run_onnx.py GRAPH OUT.npy [STEPS GAMMA LABEL NUM SEED]"""

import argparse
import itertools
import json

import numpy as np
import onnxruntime

parser = argparse.ArgumentParser(description=__doc__)
for name, value in {"graph": "", "out": "", "steps": 1, "gamma": 0.0, "label": -1, "num": 16, "seed": 0}.items():
    parser.add_argument(name, type=type(value), default=value, nargs=None if value == "" else "?")
graph, out, steps, gamma, label, num, seed = vars(parser.parse_args()).values()
session = onnxruntime.InferenceSession(graph)
about = json.loads(session.get_modelmeta().custom_metadata_map["ctm"])
given = {}  # the condition: labels, and no field
for entry in session.get_inputs()[3:]:
    fill = label if entry.name == "labels" else about["always"].get(entry.name, 0)
    given[entry.name] = np.full((num, *entry.shape[1:]), fill, entry.type[7:-1].replace("float", "float32"))
draw = np.random.default_rng(seed).standard_normal
high, low = about["sigma_max"] ** (1 / 7), about["sigma_min"] ** (1 / 7)  # Karras' grid, arXiv 2206.00364 eq. 5
grid = (high + np.arange(steps + 1) / steps * (low - high)) ** 7
x = (grid[0] * draw((num, *about["shape"]))).astype(np.float32)
for t, above in itertools.pairwise(grid):  # γ-sampling, arXiv 2310.02279 algorithm 3
    stop = max((1 - gamma**2) ** 0.5 * above, grid[-1])
    levels = {"t": np.full(num, t, np.float32), "s": np.full(num, stop, np.float32)}
    x = session.run(None, {"x": x, **levels, **given})[0]
    if above > grid[-1]:
        x = (x + max(above**2 - stop**2, 0) ** 0.5 * draw(x.shape)).astype(np.float32)
np.save(out, x)
