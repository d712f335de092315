"""The paper's corpus through the estimator, for each published image-LLM: the tables of docs/estimate.md.

    python benchmarks/estimate_paper.py [--write docs/estimate.md] [flags of jobs/estimate.py]

2.9 million videos with captions, each visited once in stage 1, and 0.6 million others with questions, each visited once
in stage 2. What the paper does not say is assumed, see the page.
"""

import argparse
import sys
from pathlib import Path

from linvt.command import parse
from linvt.estimation.config import EstimateConfig
from linvt.estimation.estimating import make_estimate
from linvt.estimation.image_llms import IMAGE_LLMS

BEGIN, END = "<!-- computed by benchmarks/estimate_paper.py -->", "<!-- end -->"
STAGE1, STAGE2 = 2_900_000, 600_000
CORPUS = [
    *("--videos", str(STAGE1 + STAGE2), "--stage1-videos", str(STAGE1), "--stage2-videos", str(STAGE2)),
    # WebVid's mean length and size.
    *(
        "--mean-seconds",
        "18",
        "--width",
        "596",
        "--height",
        "336",
        "--frame-rate",
        "30",
        "--video-megabits-per-s",
        "1.5",
    ),
]
HEAD = (
    "| | MB a sample | TB | CPU-hours | GPU-hours: extract, stage 1, stage 2 | cost with the cache | without | "
    "pays from | with shots either way |\n|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="replace the tables in this file")
    options, flags = parser.parse_known_args()
    parts = []
    for dtype in ("bf16", "int8"):
        for frames in ("16", "64"):
            rows = [row([*flags, "--cache-dtype", dtype, "--num-frames", frames], name) for name in IMAGE_LLMS]
            parts.append(f"{frames} frames, {dtype}:\n\n{HEAD}\n" + "\n".join(rows))
    text = "\n\n".join(parts)
    print(text)
    if options.write:
        page = options.write.read_text()
        before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
        options.write.write_text(f"{before}\n\n{text}\n\n{after}")


def row(flags: list[str], backbone: str) -> str:
    asked = [*CORPUS, "--backbone", backbone, *flags]
    found = make_estimate(parse(EstimateConfig, asked))[0]
    with_shots = make_estimate(parse(EstimateConfig, [*asked, "--uncached-shots"]))[0]
    hours = ", ".join(f"{work.gpu_hours:,.0f}" for work in (found.extraction, found.stage1, found.stage2))
    return (
        f"| {backbone} | {found.sample_megabytes:.1f} | {found.extraction.storage_gb / 1000:,.1f} | "
        f"{found.extraction.cpu_hours:,.0f} | {hours} | {found.cached.cost:,.0f} | {found.uncached.cost:,.0f} | "
        f"{passes(found.break_even_epochs)} | {passes(with_shots.break_even_epochs)} |"
    )


def passes(epochs: float | None) -> str:
    return "never" if epochs is None else f"{epochs:.1f} passes"


if __name__ == "__main__":
    sys.exit(main())
