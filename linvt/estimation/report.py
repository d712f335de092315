"""An estimate as a JSON outcome and as tables for people. Imports no torch."""

from dataclasses import asdict
from typing import Any

from linvt.estimation.arithmetic import Estimate, Work
from linvt.estimation.constants import Constants
from linvt.estimation.corpus import Corpus
from linvt.estimation.image_llms import ImageLLM


def outcome(estimate: Estimate, corpus: Corpus, image_llm: ImageLLM, constants: Constants) -> dict[str, Any]:
    """What the job prints last."""
    works = ("extraction", "stage1", "stage2", "cached")
    works += ("uncached_shots", "uncached_stage1", "uncached_stage2", "uncached")
    return {
        "backbone": image_llm.name,
        "corpus": asdict(corpus),
        "sample_megabytes": _rounded(estimate.sample_megabytes),
        "objects": estimate.objects,
        **{name: {part: _rounded(value) for part, value in asdict(getattr(estimate, name)).items()} for name in works},
        "break_even_epochs": None if estimate.break_even_epochs is None else _rounded(estimate.break_even_epochs),
        "verdict": estimate.verdict,
        "constants": asdict(constants),
    }


def table(estimate: Estimate) -> str:
    """Markdown: with the cache, and without."""
    rows = [
        ("extract, and keep the cache", estimate.extraction),
        ("stage 1", estimate.stage1),
        ("stage 2", estimate.stage2),
        ("**with the cache**", estimate.cached),
        ("shots, found once", estimate.uncached_shots),
        ("stage 1, decoding and encoding again", estimate.uncached_stage1),
        ("stage 2, decoding and encoding again", estimate.uncached_stage2),
        ("**without**", estimate.uncached),
    ]
    head = "| | storage TB | read TB | CPU-hours | GPU-hours | wall hours | cost |\n|---|---|---|---|---|---|---|"
    return "\n".join([head, *(f"| {name} |{_cells(work)}" for name, work in rows)])


def _cells(work: Work) -> str:
    tb = (work.storage_gb / 1000, work.read_gb / 1000)
    numbers = (*tb, work.cpu_hours, work.gpu_hours, work.wall_hours, work.cost)
    return "".join(f" {number:,.{0 if number >= 100 else 1 if number >= 10 else 2}f} |" for number in numbers)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
