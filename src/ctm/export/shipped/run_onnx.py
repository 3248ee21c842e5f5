"""Samples of a Consistency Trajectory Model from its ONNX graph: python run_onnx.py GRAPH OUT.npy [STEPS GAMMA LABEL NUM SEED]"""

import itertools
import json
import sys

import numpy as np
import onnxruntime

graph, out, *words = sys.argv[1:]
steps, gamma, label, num, seed = map(float, [*words, *("1", "0", "-1", "16", "0")[len(words) :]])
steps, num, kinds = int(steps), int(num), {"float": np.float32, "int64": np.int64, "bool": np.bool_}
session = onnxruntime.InferenceSession(graph)
about = json.loads(session.get_modelmeta().custom_metadata_map["ctm"])
given = {}  # the condition: labels, and no field
for entry in session.get_inputs()[3:]:
    fill = label if entry.name == "labels" else about["always"].get(entry.name, 0)
    given[entry.name] = np.full((num, *entry.shape[1:]), fill, kinds[entry.type[7:-1]])
draw = np.random.default_rng(int(seed)).standard_normal
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
