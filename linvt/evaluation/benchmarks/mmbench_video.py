"""MMBench-Video: open questions, which a judge rates from 0 to 3."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

from linvt.evaluation.benchmarks.files import read_tsv
from linvt.evaluation.benchmarks.lettered import take
from linvt.evaluation.benchmarks.open_qa import exact_match
from linvt.evaluation.entry import Benchmark, Item, LoadOptions, Medium, Scored, published
from linvt.evaluation.estimates import Estimate, accuracy, mean
from linvt.evaluation.rules.judging import MMBENCH_VIDEO

_DIMENSIONS = {
    "CP": ("Video Topic", "Video Emotion", "Video Scene", "Video Style"),
    "FP-S": (
        "OCR",
        "Object Recognition",
        "Attribute Recognition",
        "Event Recognition",
        "Human Motion",
        "Counting",
    ),
    "FP-C": ("Spatial Relationship", "Human-object Interaction", "Human Interaction"),
    "HL": ("Hallucination",),
    "LR": ("Structuralized Image-Text Understanding", "Mathematical Calculation"),
    "AR": ("Physical Property", "Function Reasoning", "Identity Reasoning"),
    "RR": ("Natural Relation", "Physical Relation", "Social Relation"),
    "CSR": ("Common Sense Reasoning",),
    "TR": ("Counterfactual Reasoning", "Causal Reasoning", "Future Prediction"),
}
_PERCEPTION = ("CP", "FP-S", "FP-C", "HL")


def _load(folder: Path, options: LoadOptions) -> Iterator[Item]:
    for where, row in read_tsv(published(folder, "MMBench-Video.tsv")):
        index, question, answer, dimensions, path = take(
            row, where, "index", "question", "answer", "dimensions", "video_path"
        )
        try:
            fine = [str(dimension) for dimension in ast.literal_eval(dimensions)]
        except (ValueError, SyntaxError):
            raise ValueError(f"{where}: 'dimensions' must be a list of names, got {dimensions!r}") from None
        coarse = [name for name, parts in _DIMENSIONS.items() if set(parts) & set(fine)]
        kinds = {"perception" if name in _PERCEPTION else "reasoning" for name in coarse}
        yield Item(
            item_id=index,
            media=(Medium("video", path.removeprefix("./")),),
            prompt=question,
            question=question,
            answers=(answer,),
            # A question may be of several dimensions, and counts in each.
            groups=dict.fromkeys([*coarse, *sorted(kinds)], "yes"),
        )


def _judged_metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    names = ("perception", "reasoning", *_DIMENSIONS)
    parts = {name: [row for row in rows if name in row.groups] for name in names}
    return {"mean score": mean(rows)} | {name: mean(part) for name, part in parts.items() if part}


def _metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    return {"exact match": accuracy(rows)}


MMBENCH_VIDEO_BENCHMARK = Benchmark(
    name="mmbench-video",
    title="MMBench-Video",
    kind="video",
    table=8,
    columns={"MMBench-Video": "mean score"},
    questions=1998,
    source="https://huggingface.co/datasets/opencompass/MMBench-Video",
    data="MMBench-Video.tsv",
    media="video/{video}.mp4, as VLMEvalKit unpacks them",
    load=_load,
    rule=exact_match,
    rule_name="normalised exact match",
    metrics=_metrics,
    judge=MMBENCH_VIDEO,
    judged_metrics=_judged_metrics,
    judged_unit="0–3",
    max_new_tokens=256,
    lmms_tasks=("linvt_mmbench_video",),
    lmms_ours=True,
    checked="judge's prompt word for word, ratings averaged as VLMEvalKit's \"all\" column; a local judge answers "
    "in the tests",
)
