"""`make demo` at its smallest: every job's own command line, from rendering to a served answer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_ends_with_one_json_line_that_adds_up(tmp_path):
    flags = {"train-videos": 8, "test-videos": 6, "images": 4, "steps": 3, "out": tmp_path}
    command = [sys.executable, str(ROOT / "jobs" / "demo.py"), *(f"--{k}={v}" for k, v in flags.items())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])

    # 8 + 6 videos and the 8 of validation, 4 + 4 images: all of them committed.
    assert result["extract"]["inputs"] == result["extract"]["committed"] == 30
    assert result["extract"]["quarantined"] == 0
    assert set(result["accuracy"]) == {"linvt", "uniform_frames", "middle_frame", "text_only", "chance"}
    assert all(0 <= value <= 1 for value in result["accuracy"].values())
    assert result["image_accuracy"]["stage1"] == result["image_accuracy"]["base"]
    # Stage 2's batches may be of images alone, whose loss is another matter.
    first, last = result["brief_training"]["stage1_loss"]
    assert last < first
    served = result["served"]
    assert served["answer"]
    assert (tmp_path / "world" / served["video"]).is_file()
    assert 0 < sum(moment["weight"] for moment in served["evidence"]) <= 1 + 1e-3
