"""Does a narrow scorer find informative tokens as well as a wide one? (`LinVTConfig.refiner_width`)

    python benchmarks/planted_tokens.py [--widths 512 256 64] [--steps 150] [--seeds 3]

Videos of 8 frames of 32 tokens in C = 512 dimensions. Tokens are noise; six of them, planted anywhere, also carry the
direction of the video's class, one of 8, and a mark, a direction that is the same for all classes. LinVT keeps k = 32
of the 256 and a linear layer names the class from the mean of the video tokens; nothing tells the scorer about marks.
Reported for fresh videos: the share of planted tokens that were kept (by chance 0.125), the share of classes that were
right (by chance 0.125), and CPU seconds of a step, one thread.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linvt import LinVT, LinVTConfig

C, FRAMES, PATCHES, PLANTED, CLASSES, KEPT = 512, 8, 32, 6, 8, 32
BATCH, STRENGTH = 8, 6.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=int, default=(512, 256, 64))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| refiner width | parameters of the refiner | planted tokens kept | classes right | s a step |")
    print("|" + "---|" * 5)
    for width in options.widths:
        runs = [train(width, seed, options.steps) for seed in range(options.seeds)]
        kept, right, seconds, parameters = zip(*runs)
        print(
            f"| {width} | {parameters[0]:,} | {spread(kept)} | {spread(right)} | {min(seconds):.3f} |",
            flush=True,
        )


def spread(values: tuple[float, ...]) -> str:
    return f"{sum(values) / len(values):.3f} ({', '.join(f'{value:.3f}' for value in sorted(values))})"


def videos(count: int, directions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [count, T, N, C], classes [count] and where tokens are planted [count, T·N]."""
    classes = torch.randint(CLASSES, (count,), generator=generator)
    is_planted = torch.rand(count, FRAMES * PATCHES, generator=generator).argsort(-1) < PLANTED
    tokens = torch.randn(count, FRAMES * PATCHES, C, generator=generator)
    tokens = tokens + STRENGTH * is_planted[..., None] * (directions[CLASSES] + directions[classes])[:, None]
    return tokens.reshape(count, FRAMES, PATCHES, C), classes, is_planted


def train(width: int, seed: int, steps: int) -> tuple[float, float, float, int]:
    """(planted tokens kept, classes right, CPU seconds of a step, parameters of the refiner)."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(CLASSES + 1, C, generator=generator), dim=-1)
    config = LinVTConfig(
        hidden_size=C,
        top_k=KEPT,
        num_queries=(4, 2, 1),
        num_layers=1,
        text_condition=False,
        refiner_width=None if width == C else width,
    )
    module, readout = LinVT(config), nn.Linear(C, CLASSES)
    optimizer = torch.optim.AdamW([*module.parameters(), *readout.parameters()], lr=1e-3)
    started = time.process_time()
    for _ in range(steps):
        tokens, classes, _ = videos(BATCH, directions, generator)
        loss = F.cross_entropy(readout(module(tokens).tokens.mean(1)), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = (time.process_time() - started) / steps
    module.eval()
    tokens, classes, is_planted = videos(128, directions, generator)
    with torch.no_grad():
        side = module.encode_videos(tokens)
        right = (readout(module.aggregate(side).tokens.mean(1)).argmax(-1) == classes).float().mean()
    kept = is_planted.gather(1, side.chosen).sum() / is_planted.sum()
    assert module.refiner is not None
    return float(kept), float(right), seconds, sum(p.numel() for p in module.refiner.parameters())


if __name__ == "__main__":
    main()
