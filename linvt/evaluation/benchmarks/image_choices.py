"""MMMU, AI2D and SEED-Bench's image part: multiple choice about images."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from linvt.evaluation.benchmarks.files import parquet_files, read_json, read_parquet, unpack_image
from linvt.evaluation.benchmarks.lettered import (
    ASK_FOR_LETTER,
    accuracy_metrics,
    by_letter,
    letter,
    lettered,
    options_of,
    take,
    verdict,
)
from linvt.evaluation.entry import Benchmark, Item, LoadOptions, Medium, Scored, Verdict, published
from linvt.evaluation.estimates import Estimate, accuracy, by
from linvt.evaluation.rules.choices import ai2d_letter, seed_bench_letter
from linvt.evaluation.rules.mmmu import mmmu_open_is_right, mmmu_option

_MOST_IMAGES = 7
_MMMU_DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
_DOMAIN_OF = {subject: domain for domain, subjects in _MMMU_DOMAINS.items() for subject in subjects}


def media_folder(options: LoadOptions, title: str) -> Path:
    """Where a published file's images go. Raises ValueError if nothing says."""
    if options.media is None:
        raise ValueError(f"{title} is published with its images inside: give --media-root, where they are unpacked to")
    return options.media


def _load_mmmu(folder: Path, options: LoadOptions) -> Iterator[Item]:
    media = media_folder(options, "MMMU")
    for where, row in read_parquet(parquet_files(folder, "*/validation-*.parquet", "validation-*.parquet")):
        item_id, question, choices, answer, kind = take(
            row, where, "id", "question", "options", "answer", "question_type"
        )
        options_ = [str(choice) for choice in _literal(choices)]
        multiple_choice = kind == "multiple-choice"
        if multiple_choice:
            shown = "\n".join([question, *lettered(options_)])
            prompt = f"{shown}\n{ASK_FOR_LETTER}"
        else:
            shown = question
            prompt = f"{question}\n\nAnswer the question using a single word or phrase."
        used = [i for i in range(1, _MOST_IMAGES + 1) if f"<image {i}>" in shown]
        images = [unpack_image(row[f"image_{i}"], media, f"{item_id}_{i}") for i in used]
        subject = item_id.split("_", 1)[1].rsplit("_", 1)[0]
        yield Item(
            item_id=item_id,
            media=tuple(Medium("image", image) for image in images),
            prompt=prompt,
            question=question,
            answers=tuple(str(one) for one in _literal(answer)),
            options=tuple(options_) if multiple_choice else (),
            groups={"domain": _DOMAIN_OF.get(subject, "other"), "subject": subject},
        )


def _literal(value: str) -> list[Any]:
    """The published files write lists as text; a single answer stands for itself."""
    return ast.literal_eval(value) if value.startswith("[") else [value]


def _mmmu_rule(item: Item, prediction: str) -> Verdict:
    if item.options:
        return verdict(mmmu_option(prediction, options_of(item)) in item.answers)
    return verdict(bool(prediction.strip()) and mmmu_open_is_right(prediction, item.answers))


def _mmmu_metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    return accuracy_metrics(rows) | {domain: accuracy(part) for domain, part in by(rows, "domain").items()}


MMMU = Benchmark(
    name="mmmu",
    title="MMMU val",
    kind="image",
    table=9,
    columns={"MMMU": "accuracy"},
    questions=900,
    source="https://huggingface.co/datasets/MMMU/MMMU",
    data="{subject}/validation-00000-of-00001.parquet, 30 subjects",
    media="images are unpacked to it: {id}_{number}.png",
    load=_load_mmmu,
    rule=_mmmu_rule,
    rule_name="MMMU's eval_utils.py without its random guesses",
    metrics=_mmmu_metrics,
    breakdowns=("domain", "subject"),
    max_new_tokens=128,
    lmms_tasks=("mmmu_val",),
    lmms_metrics=("mmmu_acc",),
    checked="the 1,800 published answers of LLaVA-1.5 and Qwen-VL against the published eval_utils.py, and 100,000 "
    "random ones: equal but for its random guesses",
)


def _load_ai2d(folder: Path, options: LoadOptions) -> Iterator[Item]:
    media = media_folder(options, "AI2D")
    files = parquet_files(folder, "data/test-*.parquet", "test-*.parquet")
    for number, (where, row) in enumerate(read_parquet(files)):
        question, choices, answer, image = take(row, where, "question", "options", "answer", "image")
        yield Item(
            item_id=str(number),
            media=(Medium("image", unpack_image(image, media, f"ai2d_{number:05d}")),),
            prompt="\n".join([question, *lettered(choices)]) + ASK_FOR_LETTER,
            question=question,
            answers=(letter(int(answer)),),
            options=tuple(choices),
        )


AI2D = Benchmark(
    name="ai2d",
    title="AI2D test",
    kind="image",
    table=9,
    columns={"AI2D": "accuracy"},
    questions=3088,
    source="https://huggingface.co/datasets/lmms-lab/ai2d",
    data="data/test-*.parquet",
    media="images are unpacked to it: ai2d_{number}.png",
    load=_load_ai2d,
    rule=by_letter(ai2d_letter),
    rule_name="letter, as in lmms-eval",
    metrics=accuracy_metrics,
    lmms_tasks=("ai2d",),
    lmms_metrics=("exact_match",),
    checked="20,000 random answers against lmms-eval's filter and exact match: equal",
)


def _load_seed(folder: Path, options: LoadOptions) -> Iterator[Item]:
    path = published(folder, "SEED-Bench.json")
    content = read_json(path)
    names = {number: name for name, number in content.get("question_type", {}).items()}
    for row in content["questions"]:
        where = f"{path}: question {row.get('question_id')}"
        if row.get("data_type") != "image":
            continue
        fields = ("question_id", "data_id", "question", "choice_a", "choice_b", "choice_c", "choice_d", "answer")
        question_id, image, question, *choices, answer = take(row, where, *fields)
        yield Item(
            item_id=str(question_id),
            media=(Medium("image", str(image)),),
            prompt="\n".join([question, *lettered(choices)]) + ASK_FOR_LETTER,
            question=question,
            answers=(answer,),
            options=tuple(choices),
            groups={"type": names.get(row.get("question_type_id"), str(row.get("question_type_id")))},
        )


SEED_IMAGE = Benchmark(
    name="seed-image",
    title="SEED-Image",
    kind="image",
    table=9,
    columns={"SEED-Image": "accuracy"},
    questions=14233,
    source="https://huggingface.co/datasets/AILab-CVC/SEED-Bench",
    data="SEED-Bench.json",
    media="SEED-Bench-image: {data_id}",
    load=_load_seed,
    rule=by_letter(seed_bench_letter),
    rule_name="first character, as in lmms-eval",
    metrics=accuracy_metrics,
    breakdowns=("type",),
    lmms_tasks=("seedbench",),
    lmms_metrics=("seed_image",),
    checked="20,000 random answers against lmms-eval's seed_process_result: equal",
)
