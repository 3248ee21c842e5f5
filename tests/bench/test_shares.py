import json

import numpy as np
import pytest

from ctm.cli import main
from ctm.data import load_images


@pytest.mark.slow
def test_the_stages_of_an_evaluation_are_measured(small_ctm, tmp_path, capsys):
    images = load_images("digits")
    np.savez(tmp_path / "digits.npz", images=images.pixels[:60])
    small_ctm.save_pretrained(tmp_path / "model")
    asked = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "digits.npz"), "--count", "40"]
    assert main(["bench", "evaluate", *asked, "--steps", "1,2", "--out", str(tmp_path / "out.json")]) == 0
    (entry,) = json.loads((tmp_path / "out.json").read_text()).values()
    assert set(entry["seconds"]) == {"generator", "features", "sums", "metrics"}
    assert 0 < sum(entry["seconds"].values()) < entry["total"]
    networks = entry["seconds"]["generator"] + entry["seconds"]["features"]
    assert entry["share"] == pytest.approx(networks / entry["total"])
    assert "in the generator and the feature networks" in capsys.readouterr().out
