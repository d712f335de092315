"""Shot detection on labelled real footage: which cuts are found, what else is, and how long it takes.

    python benchmarks/shots_on_real_footage.py DIR [--threads N]

DIR holds videos and a `manifest.json`: {"clip.mp4": {"hard_cuts": [first frame of each new shot], …}}, where an entry
may also name what is no hard cut but may look like one: "flash_not_cut" and "ambiguous" (frames), "fade_in" and
"dissolve" ([first, last] frame). Prints a markdown table, one row per file. Times are CPU seconds of this process, so
that a busy machine counts for little.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from linvt.shots import ShotDetector, fast_detector_dtype, load_detector, shots_from_probabilities
from linvt.shots.boundaries import CutMatch, match_cuts
from linvt.video import DecodedVideo, decode_video

TOLERANCE_FRAMES = 2
_COLUMNS = (
    "file", "codec", "frames", "labelled cuts", "found within 2 frames", "missed",
    "extra, explained", "extra, unexplained", "decode CPU s", "detect CPU s",
)  # fmt: skip


def read_manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """The labelled files of a directory, by name."""
    manifest = json.loads((directory / "manifest.json").read_text())
    return {name: entry for name, entry in manifest.items() if not name.startswith("_")}


def match_entry(video: DecodedVideo, detector: ShotDetector, entry: dict[str, Any]) -> CutMatch:
    """The cuts that `detector` finds in a video, against its manifest entry's."""
    shots = shots_from_probabilities(detector.predict(video.detector_frames))
    found = [shot.start for shot in shots if shot.start > 0]
    return match_cuts(found, entry["hard_cuts"], tolerance=TOLERANCE_FRAMES)


def is_explained(cut: int, entry: dict[str, Any]) -> bool:
    """Whether the manifest names something at frame `cut` that may pass for a cut."""
    spans = [[frame, frame] for frame in entry.get("flash_not_cut", []) + entry.get("ambiguous", [])]
    spans += [entry[kind] for kind in ("fade_in", "dissolve") if kind in entry]
    return any(first - TOLERANCE_FRAMES <= cut <= last + TOLERANCE_FRAMES for first, last in spans)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--threads", type=int, default=1, help="torch threads and decoder threads (default 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    detector = load_detector("transnetv2", dtype=fast_detector_dtype())
    detector.predict(np.zeros((250, 27, 48, 3), np.uint8))  # the first call also sets up kernels
    print(f"detector {detector.fingerprint} in {fast_detector_dtype()}")
    print(f"torch {torch.__version__}, threads {arguments.threads}\n")
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    sums = np.zeros(len(_COLUMNS) - 2)
    for name, entry in read_manifest(arguments.directory).items():
        started = time.process_time()
        video = decode_video(
            arguments.directory / name, max_side=384, max_candidates=256, num_threads=arguments.threads
        )
        decoded = time.process_time()
        match = match_entry(video, detector, entry)
        detected = time.process_time()
        explained = [cut for cut in match.extra if is_explained(cut, entry)]
        unexplained = [cut for cut in match.extra if not is_explained(cut, entry)]
        lists = (match.missed, explained, unexplained)
        numbers = [video.info.num_frames, len(entry["hard_cuts"]), len(match.matched), *map(len, lists)]
        seconds = [decoded - started, detected - decoded]
        sums += [*numbers, *seconds]
        cells = [*numbers[:3], *(f"{len(cuts)}: {', '.join(map(str, cuts))}" if cuts else "0" for cuts in lists)]
        print(_row([name, video.info.codec, *cells, *(f"{value:.2f}" for value in seconds)]), flush=True)
    print(_row(["**all**", "", *(f"{value:.0f}" for value in sums[:-2]), *(f"{value:.1f}" for value in sums[-2:])]))
    print(f"\n{sums[0] / sums[-2]:.0f} frames per CPU second decoded, {sums[0] / sums[-1]:.0f} through the detector")


def _row(cells: list[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
