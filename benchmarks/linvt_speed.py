"""How fast and how large LinVT is: against the authors' public module, and against the machine's matrix products.

    python benchmarks/linvt_speed.py [--peer CHECKOUT] [--parts speed memory long widths question] [--dtype float32]

- speed: forward, and forward with backward, at (T, N, C). Floor: our FLOPs at the rate of the machine's own [T·N, C] by
  [C, C] products, measured in between. Rounds are taken in turn; the best of each counts.
- memory: how far the resident size of a fresh process rises in one forward (and backward), beyond weights and tokens.
- long: the same up to T = 1,024 at N = 64, to see how time and memory grow.
- widths: the scorer at the widths C, 256 and 64.
- question: a second question about the same video, against the first.

CHECKOUT is a clone of github.com/gls0425/LinVT, of which the module's three files are imported; without it, only the
floor is compared with. The same layers, heads, k and number of queries on both sides; the peer knows no time, no scales
apart, and its tokens leave the refiner transformed. Seconds are the process's CPU seconds on one thread (wall
seconds on a GPU).
"""

import argparse
import importlib
import resource
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linvt import LinVT, LinVTConfig
from linvt.video_tokenizer.pooling import window_starts

PARTS = ("speed", "memory", "long", "widths", "question")
SIZES = ("16,256,896", "64,256,896", "64,144,3584")
FORWARD_ONLY_FROM = 3000  # channels; a backward pass of those needs more memory than most CPUs' machines have
LONG = (64, 256, 1024)
TEXT_TOKENS = 32
MODULE_FOLDER = "internvl_chat/internvl/model/internvl_chat"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a clone of github.com/gls0425/LinVT")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="T,N,C of the parts speed and memory")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak-of", nargs=6, help=argparse.SUPPRESS)  # the process that `peak_mib` starts
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.peak_of:
        print(measure_peak(options))
        return
    print(f"{options.dtype}, {device()}, torch {torch.__version__}, one thread, best of {options.rounds}")
    for part in options.parts:
        print(f"\n## {part}", flush=True)
        {"speed": speed, "memory": memory, "long": long, "widths": widths, "question": question}[part](options)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def sizes(options: argparse.Namespace) -> list[tuple[int, int, int, tuple[bool, ...]]]:
    """T, N, C and the passes to measure: whether with backward."""
    triples = [[int(number) for number in size.split(",")] for size in options.sizes]
    return [(t, n, c, (False,) if c >= FORWARD_ONLY_FROM else (False, True)) for t, n, c in triples]


def config_of(c: int, **fields: object) -> LinVTConfig:
    return LinVTConfig(hidden_size=c, **fields)  # pyright: ignore[reportArgumentType]


def tensors(t: int, n: int, c: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(1, t, n, c, dtype=dtype, device=device()),
        torch.randn(1, TEXT_TOKENS, c, dtype=dtype, device=device()),
    )


def ours(c: int, dtype: torch.dtype, **fields: object) -> LinVT:
    with torch.device(device()):
        return LinVT(config_of(c, **fields)).to(dtype)


class Peer(nn.Module):
    """The authors' module with our numbers of layers, heads, tokens and queries."""

    def __init__(self, checkout: Path, c: int) -> None:
        super().__init__()
        package = types.ModuleType("linvt_authors")
        package.__path__ = [str(checkout / MODULE_FOLDER)]
        sys.modules["linvt_authors"] = package
        module = importlib.import_module("linvt_authors.linvt").LinearVideoTokenizer
        config = config_of(c)
        self.queries = nn.Parameter(torch.randn(1, config.num_video_tokens, c) * 0.02)
        self.module = module(c, config.num_heads, config.num_layers, config.top_k, use_multi_scale=True)

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        return self.module(self.queries, tokens, text)


def peer(checkout: Path, c: int, dtype: torch.dtype) -> nn.Module:
    with torch.device(device()):
        return Peer(checkout, c).to(dtype)


def step(module: nn.Module, tokens: Tensor, text: Tensor, backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        out = module(tokens, text)
        out = out if isinstance(out, Tensor) else out.tokens
        if backward:
            module.zero_grad(set_to_none=True)
            out.square().sum().backward()


def flops(config: LinVTConfig, t: int, n: int) -> float:
    """Of one forward; a multiplication and an addition are two. Backward counts twice as much again."""
    c, w = config.hidden_size, config.refiner_width or config.hidden_size
    s, layers, q = t * n, config.num_layers, config.num_video_tokens
    k = min(config.top_k, s)
    pooled = [window_starts(k, window) for window in config.windows]
    refiner = layers * s * (8 * w * w + 4 * n * w) + (2 * s * c * w if config.refiner_width else 0) + 4 * t * t * n
    keys = sum(pooled) * (4 * layers + 2) * c * c
    read = sum(a * b for a, b in zip(config.num_queries, pooled))
    own = sum(a * a for a in config.num_queries)
    queries = layers * (16 * q * c * c + 4 * own * c + 4 * read * c + 4 * q * TEXT_TOKENS * c + 4 * TEXT_TOKENS * c * c)
    return float(refiner + keys + queries + 2 * q * c * c + 4 * read * c)


def seconds(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Best of the rounds, which are taken in turn so that what else the machine does meets all alike."""
    clock = time.process_time if device() == "cpu" else time.perf_counter
    best: dict[str, float] = {}
    for name in list(functions) * rounds:
        started = clock()
        functions[name]()
        if device() == "cuda":
            torch.cuda.synchronize()
        best[name] = min(best.get(name, float("inf")), clock() - started)
    return best


def gemm(t: int, n: int, c: int, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """Products for long enough to meet the machine's other work as the modules do, and their FLOPs."""
    inputs = torch.randn(t * n, c, dtype=dtype, device=device())
    weight = torch.randn(c, c, dtype=dtype, device=device())
    product_flops = 2.0 * t * n * c * c
    times = max(1, round(1e11 / product_flops))

    def products() -> None:
        with torch.no_grad():
            for _ in range(times):
                F.linear(inputs, weight)

    return products, times * product_flops


def speed(options: argparse.Namespace) -> None:
    dtype = getattr(torch, options.dtype)
    print("| T, N, C | pass | floor s | ours s | share of floor | peer s | ours is faster by |\n|" + "---|" * 7)
    for t, n, c, passes in sizes(options):
        tokens, text = tensors(t, n, c, dtype)
        modules: dict[str, nn.Module] = {"ours": ours(c, dtype)}
        if options.peer:
            modules["peer"] = peer(options.peer, c, dtype)
        for backward in passes:
            product, product_flops = gemm(t, n, c, dtype)
            functions: dict[str, Callable[[], object]] = {"gemm": product}
            for name, module in modules.items():
                functions[name] = lambda module=module: step(module, tokens, text, backward)  # noqa: B023
            best = seconds(functions, options.rounds)
            floor = flops(config_of(c), t, n) * (3 if backward else 1) / (product_flops / best["gemm"])
            versus = f"{best['peer']:.2f} | {best['peer'] / best['ours']:.2f}" if options.peer else "- | -"
            label = "forward + backward" if backward else "forward"
            shares = f"{floor:.2f} | {best['ours']:.2f} | {floor / best['ours']:.0%}"
            print(f"| {t}, {n}, {c} | {label} | {shares} | {versus} |", flush=True)


def memory(options: argparse.Namespace) -> None:
    print("| T, N, C | pass | ours MiB | ours, checkpointing | peer MiB | ours / peer |\n|" + "---|" * 6)
    for t, n, c, passes in sizes(options):
        for backward in passes:
            plain = peak_mib(options, "ours", t, n, c, backward)
            lean = peak_mib(options, "checkpointing", t, n, c, backward) if backward else plain
            other = peak_mib(options, "peer", t, n, c, backward) if options.peer else None
            versus = f"{other:.0f} | {plain / other:.2f}" if other else "- | -"
            label = "forward + backward" if backward else "forward"
            print(f"| {t}, {n}, {c} | {label} | {plain:.0f} | {lean:.0f} | {versus} |", flush=True)


def long(options: argparse.Namespace) -> None:
    print("| T, N, C | tokens MiB | forward s | forward peak MiB | peer's peak MiB |\n|" + "---|" * 5)
    dtype = getattr(torch, options.dtype)
    for t in LONG:
        tokens, text = tensors(t, 64, 896, dtype)
        module = ours(896, dtype)
        best = seconds({"ours": lambda: step(module, tokens, text, False)}, 1)  # noqa: B023
        peak = peak_mib(options, "ours", t, 64, 896, False)
        other = f"{peak_mib(options, 'peer', t, 64, 896, False):.0f}" if options.peer else "-"
        size = tokens.numel() * tokens.element_size() / 2**20
        print(f"| {t}, 64, 896 | {size:.0f} | {best['ours']:.2f} | {peak:.0f} | {other} |", flush=True)


def widths(options: argparse.Namespace) -> None:
    print("| T, N, C | refiner width | parameters | forward s | forward + backward s |\n|" + "---|" * 5)
    dtype = getattr(torch, options.dtype)
    for t, n, c in ((64, 256, 896),):
        tokens, text = tensors(t, n, c, dtype)
        functions: dict[str, Callable[[], object]] = {}
        count = {}
        for width in (None, 256, 64):
            module = ours(c, dtype, refiner_width=width)
            count[width] = sum(p.numel() for p in module.parameters())
            for backward in (False, True):
                functions[f"{width} {backward}"] = lambda m=module, b=backward: step(m, tokens, text, b)  # noqa: B023
        best = seconds(functions, options.rounds)
        for width, parameters in count.items():
            times = f"{best[f'{width} False']:.2f} | {best[f'{width} True']:.2f}"
            print(f"| {t}, {n}, {c} | {width or c} | {parameters:,} | {times} |", flush=True)


def question(options: argparse.Namespace) -> None:
    print("| T, N, C | first question s | second question s | ratio | kept of the video MiB |\n|" + "---|" * 5)
    dtype = getattr(torch, options.dtype)
    for t, n, c in ((16, 256, 896), (64, 256, 896)):
        tokens, text = tensors(t, n, c, dtype)
        module = ours(c, dtype).eval()
        with torch.no_grad():
            side = module.encode_videos(tokens)

            def second() -> None:
                with torch.no_grad():
                    module.aggregate(side, text)  # noqa: B023

            best = seconds({"first": lambda: step(module, tokens, text, False), "second": second}, options.rounds)  # noqa: B023
        print(
            f"| {t}, {n}, {c} | {best['first']:.2f} | {best['second']:.3f} | {best['first'] / best['second']:.0f} | "
            f"{side.num_bytes / 2**20:.0f} |",
            flush=True,
        )


def peak_mib(options: argparse.Namespace, who: str, t: int, n: int, c: int, backward: bool) -> float:
    command = [sys.executable, __file__, "--dtype", options.dtype, "--peak-of", who]
    command += [str(value) for value in (t, n, c, int(backward), options.peer or "-")]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(options: argparse.Namespace) -> float:
    who, t, n, c, backward, checkout = options.peak_of
    dtype = getattr(torch, options.dtype)
    tokens, text = tensors(int(t), int(n), int(c), dtype)
    module = peer(Path(checkout), int(c), dtype) if who == "peer" else ours(int(c), dtype)
    if isinstance(module, LinVT):
        module.gradient_checkpointing_enable(who == "checkpointing")
    if device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(module, tokens, text, backward == "1")
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    step(module, tokens, text, backward == "1")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before / 2**20


if __name__ == "__main__":
    main()
