"""Does an estimate come true? Calibrates on this machine, predicts a job of the tiny image-LLM, runs it, compares.

    python benchmarks/estimate_check.py [--videos 48] [--rounds 3]

Each round renders nothing and changes nothing: it measures the constants, extracts the same videos, trains both stages,
and compares what the estimate says with what videos.parquet, the shards and metrics.jsonl say. Rounds are taken one
after the other, so a machine that others use is as busy for the one as for the other; the table has the median of their
ratios. Exits with 1 if one of them is off by more than a fifth.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from linvt.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent
FRAMES, BATCH, TURNS, STEPS = 16, 16, 2, 12
TOLERANCE = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder, "world")
        sizes = {"train-videos": options.videos, "val-videos": 0, "test-videos": 0, "train-images": 0, "test-images": 0}
        job("make_world.py", "--out", world, *(part for name, n in sizes.items() for part in (f"--{name}", n)))
        for number in range(options.rounds):
            for name, (predicted, measured) in one_round(world, Path(folder, f"round{number}"), options.videos).items():
                ratios.setdefault(name, []).append(predicted / measured)
                print(f"round {number}: {name}: predicted {predicted:.4g}, measured {measured:.4g}", file=sys.stderr)
    print("| | predicted / measured, median | each round |\n|---|---|---|")
    for name, each in ratios.items():
        print(f"| {name} | {statistics.median(each):.2f} | {', '.join(f'{ratio:.2f}' for ratio in each)} |")
    off = [name for name, each in ratios.items() if abs(statistics.median(each) - 1) > TOLERANCE]
    if off:
        sys.exit(f"off by more than {TOLERANCE:.0%}: {', '.join(off)}")


def one_round(world: Path, folder: Path, videos: int) -> dict[str, tuple[float, float]]:
    """(predicted, measured) by name."""
    files = sorted((world / "train/videos").rglob("*.mp4"), key=lambda file: file.stat().st_size)
    asked = ["--videos", world, "--backbone", "tiny", "--num-frames", FRAMES, "--gpus", 1, "--cpus", 1]
    asked += ["--encode-batch-size", BATCH, "--turns-per-visit", TURNS, "--lora-rank", 4]
    # The questions and answers of the rendered world are short.
    asked += ["--text-tokens", 16, "--answer-tokens", 3, "--height", 128, "--width", 128]
    told = job("estimate.py", *asked, "--calibrate", "--calibration-videos", files[0], files[-1])
    cache = folder / "cache"
    flags = ["--videos", world, "--backbone", "tiny", "--out", cache]
    flags += ["--num-frames", FRAMES, "--encode-batch-size", BATCH, "--detector-dtype", "float32"]
    # One worker of each kind, so that they do not take turns on the same cores.
    job("extract_features.py", *flags, "--num-decode-workers", 1, "--num-encode-workers", 1)
    columns = pq.read_table(cache / "videos.parquet", columns=["fetch_s", "decode_s", "shots_detection_s", "encode_s"])
    # The first inputs of a worker pay for its start.
    seconds = {name: np.median(columns[name].to_numpy()) * videos for name in columns.column_names}
    tars = sum(file.stat().st_size for file in (cache / "shards").glob("*.tar"))
    compared = {
        "bytes of the shards": (told["sample_megabytes"] * 1e6 * videos, float(tars)),
        "decode and find shots, s": (
            told["extraction"]["cpu_hours"] * 3600,
            float(seconds["fetch_s"] + seconds["decode_s"] + seconds["shots_detection_s"]),
        ),
        "encode, s": (told["extraction"]["gpu_hours"] * 3600, float(seconds["encode_s"])),
    }
    for stage in (1, 2):
        out = folder / f"stage{stage}"
        flags = ["--stage", stage, "--cache", cache, "--annotations", world / "train_videos.jsonl", "--out", out]
        flags += ["--backbone", "tiny", "--steps", STEPS, "--log-every", 1, "--num-workers", 0, "--lora-rank", 4]
        job("train.py", *flags, "--turns-per-visit", TURNS, "--visits-per-batch", 4)
        rates = [line["samples_per_s"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line][2:]
        visits = told["corpus"]["videos"]
        compared[f"stage {stage}, s a visit"] = (
            told[f"stage{stage}"]["gpu_hours"] * 3600 / visits,
            1 / statistics.median(rates),
        )
    return compared


def job(script: str, *arguments: Any) -> dict[str, Any]:
    command = [sys.executable, f"jobs/{script}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
