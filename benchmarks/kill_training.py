"""Kills trainings at random steps until they have survived many kills, and compares what they leave bit by bit.

    python benchmarks/kill_training.py [--kills 12] [--steps 12] [--seed 0]

Undisturbed runs on one and on two workers give the references. Then runs are started, and when they reach a step drawn
at random a process of theirs gets SIGKILL: the only process of a run without Ray, a worker or the whole of a torchrun,
a worker, the controller or the whole of a run on Ray, in turn. A job that ends by it is started again with
--on-existing resume. Stage 2 with dropout on the adapters and averaged weights, on videos that are rendered and
extracted first.

Each finished run's losses, learning rates and gradient norms of every step, the cursor, and the bytes of weights, Adam
moments, averages and model must equal the undisturbed run's. Prints a line a run and, last, a markdown table.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from linvt.training.checkpoint import latest_checkpoint
from linvt.training.metrics import METRICS_FILE, last_training_line, read_metrics

ROOT = Path(__file__).resolve().parent.parent
SAME = ("step", "samples", "epoch", "loss", "loss_answer", "learning_rate", "grad_norm")
HANGS_AFTER_S = 400


@dataclass(frozen=True)
class Target:
    launcher: str
    """alone, torchrun or ray."""
    victim: str

    @property
    def num_workers(self) -> int:
        return 1 if self.launcher == "alone" else 2

    def command(self, inputs: Path, out: Path, steps: int) -> list[str]:
        python = [sys.executable]
        if self.launcher == "torchrun":
            python += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        sizes = ("--linvt-num-queries", "8", "4", "--linvt-windows", "1", "2", "--linvt-num-layers", "1")
        return [
            *(*python, "jobs/train.py", "--stage", "2", "--backbone", "tiny", "--cache", str(inputs / "cache")),
            *("--annotations", str(inputs / "world/train_videos.jsonl"), "--out", str(out), "--on-existing", "resume"),
            *("--num-workers", "2" if self.launcher == "ray" else "0", "--steps", str(steps), *sizes),
            *("--visits-per-batch", "4", "--turns-per-visit", "2", "--lora-dropout", "0.1", "--ema-decay", "0.9"),
            *("--save-every", "3", "--log-every", "1", "--warmup-steps", "4", "--learning-rate", "1e-3"),
            *("--max-left-out-share", "0.5", "--linvt-num-heads", "4"),
        ]


TARGETS = (
    Target("alone", "process"),
    Target("torchrun", "worker"),
    Target("ray", "worker"),
    Target("ray", "controller"),
    Target("torchrun", "everything"),
    Target("ray", "everything"),
)
RAY_NAMES = {"worker": "RayTrainWorker", "controller": "TrainController"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    tally: Counter[tuple[Target, str]] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        expected = {}
        for target in (Target("alone", ""), Target("ray", "")):
            out = folder / f"undisturbed-{target.num_workers}"
            Job(target.command(folder, out, options.steps)).finish()
            expected[target.num_workers] = what_is_left(out)
        for run in range(options.kills):
            target = TARGETS[run % len(TARGETS)]
            out = folder / f"run{run}"
            step = rng.randrange(1, options.steps)
            how = run_with_a_kill(target, folder, out, options.steps, step, rng)
            found, wanted = what_is_left(out), expected[target.num_workers]
            different = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
            result = "identical" if not different else f"DIFFERENT: {different}"
            print(f"run {run}: {target.launcher}, {target.victim} killed at step {step}, {how}: {result}", flush=True)
            if different:
                sys.exit(1)
            tally[target, how] += 1
    print("\n| started by | killed | went on by itself | ended and was resumed | hung and was resumed |")
    print("|---|---|---|---|---|")
    for target in TARGETS:
        counts = " | ".join(str(tally[target, how]) for how in ("went on", "resumed", "hung"))
        print(f"| {target.launcher} | {target.victim} | {counts} |")
    print(f"\n{tally.total()} kills; every run left what the undisturbed one left, bit for bit")


def make_inputs(folder: Path) -> None:
    sizes = {"train-videos": 24, "val-videos": 0, "test-videos": 0, "train-images": 0, "test-images": 0}
    flags = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    world = ["jobs/make_world.py", "--out", str(folder / "world"), *flags]
    cache = ["jobs/extract_features.py", "--videos", str(folder / "world"), "--backbone", "tiny", "--detector", "none"]
    for command in (world, [*cache, "--num-frames", "8", "--out", str(folder / "cache")]):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)


class Job:
    """A running command, and whatever it has started."""

    def __init__(self, command: list[str]) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        environment = os.environ | {"RAY_ADDRESS": "local"}
        self.process = psutil.Popen(command, cwd=ROOT, env=environment, stdout=self.log, stderr=self.log)
        self.seen: set[psutil.Process] = set()

    def others(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            self.seen |= set(self.process.children(recursive=True))
        return [process for process in self.seen if process.is_running()]

    def wait(self) -> int | None:
        """The exit code once all of it has ended; None where it hangs."""
        code: int | None = None
        with suppress(psutil.TimeoutExpired):
            code = self.process.wait(HANGS_AFTER_S)
        self.end()
        return code

    def finish(self) -> None:
        """Wait for its good end."""
        code = self.wait()
        self.log.seek(0)
        assert code == 0, f"an undisturbed command ended with {code}:\n{self.log.read().decode()[-4000:]}"

    def end(self) -> None:
        others = self.others()
        for process in (self.process, *others):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs([self.process, *others])


def run_with_a_kill(target: Target, inputs: Path, out: Path, steps: int, step: int, rng: random.Random) -> str:
    command = target.command(inputs, out, steps)
    job = Job(command)
    while True:
        assert job.process.poll() is None, "ended before it was killed"
        job.others()
        line = last_training_line(out / METRICS_FILE)
        if line is not None and line["step"] >= step:
            break
        time.sleep(0.02)
    kill(job, target, rng)
    code = job.wait()
    if code == 0:
        return "went on"
    Job(command).finish()
    return "hung" if code is None else "resumed"


def kill(job: Job, target: Target, rng: random.Random) -> None:
    if target.victim == "everything":
        job.end()
        return
    if target.victim == "process":
        job.process.kill()
        return
    named = {process: " ".join(cmdline_of(process)) for process in job.others()}
    wanted = RAY_NAMES[target.victim] if target.launcher == "ray" else "jobs/train.py"
    victims = [process for process, name in named.items() if wanted in name]
    assert victims, f"no {wanted} among {sorted(named.values())}"
    rng.choice(sorted(victims, key=lambda process: process.pid)).kill()


def cmdline_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def what_is_left(out: Path) -> dict[str, object]:
    """Everything that must not depend on how the run went, by name."""
    checkpoint = latest_checkpoint(out)
    assert checkpoint is not None
    files = [*checkpoint.iterdir(), *(file for file in (out / "model").rglob("*") if file.suffix == ".safetensors")]
    left: dict[str, object] = {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    for line in read_metrics(out / METRICS_FILE):
        left[f"step {line['step']}"] = json.dumps([line[name] for name in SAME])
    return left


if __name__ == "__main__":
    main()
