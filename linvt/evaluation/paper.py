"""What is known of the paper's Tables 7, 8 and 9 (arXiv 2412.05185): the rows of the LinVT models.

Only numbers that were seen in a public place that is named; the paper's other rows are not repeated here.
"""

from dataclasses import dataclass

PAPERS_WITH_CODE = "Papers with Code's results of the paper"
AUTHORS = "leaderboards in the README of github.com/gls0425/LinVT"
LISTING = "the paper's results as listed by wizwand.com"

TABLE_TITLES = {
    7: "open-ended video questions",
    8: "video benchmarks",
    9: "image benchmarks",
}


@dataclass(frozen=True, slots=True)
class PaperCell:
    """A number of the paper, as printed there, and where it was seen."""

    value: float
    source: str


_SEEN = {
    PAPERS_WITH_CODE: {
        "MSVD-QA acc.": 80.2,
        "MSVD-QA score": 4.4,
        "MSRVTT-QA acc.": 66.2,
        "MSRVTT-QA score": 4.0,
        "ActivityNet-QA acc.": 60.1,
        "ActivityNet-QA score": 3.6,
        "TGIF-QA acc.": 81.3,
        "TGIF-QA score": 4.3,
        "MVBench": 69.3,
        "NExT-QA": 85.5,
        "EgoSchema": 69.5,
    },
    LISTING: {"Video-MME w/o subs, Long": 63.1, "TempCompass": 65.8},
    AUTHORS: {"MLVU M-Avg": 68.9, "VideoVista": 79.67},
}

PAPER_ROWS: dict[str, dict[str, PaperCell]] = {
    "LinVT-Qwen2-VL (7B), paper": {
        column: PaperCell(value, source) for source, cells in _SEEN.items() for column, value in cells.items()
    },
    # The image-LLM behind this one is not named where it was seen.
    "LinVT, paper": {"MM-Vet": PaperCell(23.5, PAPERS_WITH_CODE)},
}
