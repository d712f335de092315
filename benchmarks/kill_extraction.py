"""Kills an extraction at random moments until it has survived many kills, and compares what it leaves bit by bit.

    python benchmarks/kill_extraction.py [--kills 50] [--videos 60] [--seed 0]

An undisturbed run gives the reference. Then runs are started and, at moments drawn evenly over nine tenths of its
length, the driver, a worker or the raylet (in turn) gets SIGKILL; a job that ends by it is started again with
--on-existing resume. Each finished run's shards, plan, index.parquet and videos.parquet (but for its timings) must
equal the reference's. Prints one line a finished run and, last, a markdown table of what was killed.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from linvt.extraction.rows import STAGE_SECONDS

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("driver", "worker", "raylet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--videos", type=int, default=60, help="rendered videos of the corpus")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        corpus, reference = Path(folder, "corpus"), Path(folder, "reference")
        make_corpus(corpus, options.videos)
        started = time.monotonic()
        assert start(corpus, reference).wait() == 0, "the undisturbed run failed"
        length_s = time.monotonic() - started
        expected = digests(reference)
        print(f"undisturbed: {length_s:.0f} s, {len(expected)} files", flush=True)
        tally: Counter[tuple[str, str]] = Counter()
        runs = 0
        while tally.total() < options.kills:
            out = Path(folder, f"run{runs}")
            kills = run_with_kills(corpus, out, rng, length_s, tally, options.kills)
            found = digests(out)
            different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            print(
                f"run {runs}: {kills} kills, {'identical' if not different else f'DIFFERENT: {different}'}", flush=True
            )
            if different:
                sys.exit(1)
            runs += 1
    print("\n| killed | the job went on | the job ended and was resumed |\n|---|---|---|")
    for target in TARGETS:
        print(f"| {target} | {tally[target, 'went on']} | {tally[target, 'resumed']} |")
    print(f"\n{tally.total()} kills in {runs} runs; every run's files were identical to the undisturbed run's")


def make_corpus(corpus: Path, videos: int) -> None:
    sizes = {"train-videos": videos, "val-videos": 0, "test-videos": 0, "train-images": 6, "test-images": 0}
    flags = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "jobs/make_world.py", "--out", str(corpus), *flags]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (corpus / "train/videos/broken.mp4").write_bytes(b"not a video")


def start(corpus: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "jobs/extract_features.py", "--backbone", "tiny", "--videos", str(corpus)]
    command += ["--out", str(out), "--samples-per-shard", "8", "--num-frames", "8", "--on-existing", "resume"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": "local"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def run_with_kills(
    corpus: Path, out: Path, rng: random.Random, length_s: float, tally: Counter[tuple[str, str]], kills: int
) -> int:
    """Starts a job again and again until it ends well; returns how many kills that took."""
    before = tally.total()
    while True:
        job = start(corpus, out)
        target = TARGETS[tally.total() % len(TARGETS)]
        victim = None
        if tally.total() < kills:
            try:
                job.wait(rng.uniform(0, 0.9 * length_s))
            except subprocess.TimeoutExpired:
                victim = find(job.pid, target, rng)
                if victim is not None:
                    victim.send_signal(signal.SIGKILL)
        succeeded = job.wait() == 0
        if victim is not None:
            tally[target, "went on" if succeeded else "resumed"] += 1
        end_session(job.pid)
        if succeeded:
            return tally.total() - before
        if victim is None:
            sys.exit("the job failed though nothing was killed")


def find(driver: int, target: str, rng: random.Random) -> psutil.Process | None:
    """A process of the job to kill; None where there is none (yet)."""
    try:
        process = psutil.Process(driver)
        if target == "driver":
            return process
        children = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return None
    named = {child: name_of(child) for child in children}
    wanted = [child for child, name in named.items() if (name == "raylet" if target == "raylet" else "::" in name)]
    return rng.choice(wanted) if wanted else None


def name_of(process: psutil.Process) -> str:
    """`raylet`, or what Ray calls a worker: `ray::MapWorker(…)`."""
    try:
        return "raylet" if process.name() == "raylet" else " ".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


def end_session(session: int) -> None:
    """What a killed driver left of its local cluster must not be in the next one's way."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session:
                process.kill()
        except (psutil.Error, ProcessLookupError, PermissionError):
            continue


def digests(out: Path) -> dict[str, str]:
    """sha256 by name of everything that must not depend on how the run went."""
    files = [*sorted((out / "shards").iterdir()), out / "index.parquet", out / "plan.parquet"]
    found = {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    rows = pq.read_table(out / "videos.parquet").drop_columns(list(STAGE_SECONDS.values())).to_pylist()
    return found | {"videos.parquet": hashlib.sha256(json.dumps(rows, default=repr).encode()).hexdigest()}


if __name__ == "__main__":
    main()
