"""MVBench, NExT-QA and EgoSchema: multiple choice about short videos."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from linvt.annotations import read_annotations
from linvt.evaluation.benchmarks.files import read_json, read_rows
from linvt.evaluation.benchmarks.lettered import (
    ASK_FOR_LETTER,
    accuracy_metrics,
    letter,
    lettered,
    number_of,
    options_of,
    take,
    verdict,
)
from linvt.evaluation.entry import Benchmark, Item, LoadOptions, Medium, Scored, Verdict, published
from linvt.evaluation.estimates import Estimate, mean_over
from linvt.evaluation.rules.choices import mvbench_is_right
from linvt.evaluation.rules.mmmu import nextqa_option

MVBENCH_FOLDERS = {
    "object_interaction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment",
    "action_prediction": "star/Charades_segment",
    "action_localization": "sta/sta_video_segment",
    "moving_count": "clevrer/video_validation",
    "fine_grained_pose": "nturgbd_convert",
    "character_order": "perception/videos",
    "object_shuffle": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "moving_direction": "clevrer/video_validation",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "moving_attribute": "clevrer/video_validation",
    "action_antonym": "ssv2_video_mp4",
    "unexpected_action": "FunQA_test/test",
    "counterfactual_inference": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "action_count": "perception/videos",
}
"""Where the videos of each task lie in the repository's branch `video`, whose clips are cut to the asked section."""


def _load_mvbench(folder: Path, options: LoadOptions) -> Iterable[Item]:
    root = published(folder, "json", "action_sequence.json")
    root = root if root.is_dir() else root.parent
    for task, videos in MVBENCH_FOLDERS.items():
        for number, (where, row) in enumerate(read_rows(published(root, f"{task}.json"))):
            video, question, candidates, answer = take(row, where, "video", "question", "candidates", "answer")
            shown = "".join(f"{option}\n" for option in lettered(candidates, "({}) {}"))
            yield Item(
                item_id=f"{task}/{number}",
                media=(Medium("video", f"{videos}/{video}"),),
                prompt=f"Question:{question}\nOption:\n{shown}Only give the best option.\n",
                question=question,
                answers=(letter(number_of(candidates, answer, where)),),
                options=tuple(candidates),
                groups={"task": task},
            )


def _mvbench_rule(item: Item, prediction: str) -> Verdict:
    return verdict(mvbench_is_right(prediction, item.answers[0]))


def _mvbench_metrics(rows: Sequence[Scored]) -> dict[str, Estimate]:
    return {"mean of tasks": mean_over(rows, "task"), **accuracy_metrics(rows)}


MVBENCH = Benchmark(
    name="mvbench",
    title="MVBench",
    kind="video",
    table=8,
    columns={"MVBench": "mean of tasks"},
    questions=4000,
    source="https://huggingface.co/datasets/OpenGVLab/MVBench",
    data="json/{task}.json, 20 tasks",
    media="the branch `video`, unpacked: star/Charades_segment/…, clevrer/video_validation/…, …",
    load=_load_mvbench,
    rule=_mvbench_rule,
    rule_name="first word within the option's letter, as in mvbench.ipynb",
    metrics=_mvbench_metrics,
    breakdowns=("task",),
    lmms_tasks=("mvbench",),
    lmms_metrics=("mvbench_accuracy",),
    lmms_scale=1,
    checked="100,000 random answers against VLMEvalKit's copy of `check_ans`: equal but for answers without a letter, "
    "which count as right there",
)


def _load_nextqa(folder: Path, options: LoadOptions) -> Iterable[Item]:
    path = published(folder, "test.csv", "val.csv")
    for annotation, (where, row) in zip(read_annotations([path], "nextqa"), read_rows(path), strict=True):
        (turn,) = annotation.turns
        if turn.choices is None:
            raise ValueError(f"{where}: an open-ended question; expected those with a0 to a4")
        shown = "\n".join([turn.question, *lettered(turn.choices)])
        yield Item(
            item_id=f"{row['video']}/{row['qid']}",
            media=(Medium("video", annotation.media_id),),
            prompt=shown + ASK_FOR_LETTER,
            question=turn.question,
            # The published number: two options of a question may be equal.
            answers=(letter(int(row["answer"])),),
            options=turn.choices,
            groups={"type": turn.family or "", "kind": _NEXTQA_KINDS.get((turn.family or " ")[0], "other")},
        )


_NEXTQA_KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}


def _by_mmmu(item: Item, prediction: str) -> Verdict:
    return verdict(nextqa_option(prediction, options_of(item)) in item.answers)


NEXTQA = Benchmark(
    name="nextqa",
    title="NExT-QA",
    kind="video",
    table=8,
    columns={"NExT-QA": "accuracy"},
    questions=8564,
    source="https://github.com/doc-doc/NExT-QA",
    data="test.csv (or val.csv, 4,996 questions), with map_vid_vidorID.json",
    media="VidOR's {folder}/{video}.mp4; without the map, {video}.mp4",
    load=_load_nextqa,
    rule=_by_mmmu,
    rule_name="option by letter or text, as lmms-eval reads it",
    read_here="val: 4,996",
    metrics=accuracy_metrics,
    breakdowns=("kind", "type"),
    lmms_tasks=("nextqa_mc_test",),
    lmms_metrics=("exact_match",),
    checked="all 4,996 published validation rows; 100,000 random answers against lmms-eval's parser: equal but for its "
    "random guesses",
)


def _load_egoschema(folder: Path, options: LoadOptions) -> Iterable[Item]:
    questions = published(folder, "questions.json")
    answers_path = questions.with_name("subset_answers.json")
    answers: dict[str, int] = read_json(answers_path) if answers_path.is_file() else {}
    for where, row in read_rows(questions):
        names = [f"option {i}" for i in range(5)]
        uid, question, *choices = take(row, where, "q_uid", "question", *names)
        yield Item(
            item_id=uid,
            media=(Medium("video", f"{uid}.mp4"),),
            prompt="\n".join([question, *lettered(choices)]) + ASK_FOR_LETTER,
            question=question,
            answers=(letter(answers[uid]),) if uid in answers else (),
            options=tuple(choices),
        )


def _egoschema_submission(answered: Sequence[tuple[Item, str | None]]) -> dict[str, int]:
    """{q_uid: number of the option}, -1 where no option can be read: what the benchmark's server takes."""
    read = {item.item_id: nextqa_option(text or "", options_of(item)) for item, text in answered}
    return {uid: "ABCDE".index(option) if option else -1 for uid, option in read.items()}


EGOSCHEMA = Benchmark(
    name="egoschema",
    title="EgoSchema",
    kind="video",
    table=8,
    columns={"EgoSchema": "accuracy"},
    questions=5031,
    source="https://github.com/egoschema/EgoSchema",
    data="questions.json; subset_answers.json has 500 answers",
    media="{q_uid}.mp4",
    load=_load_egoschema,
    rule=_by_mmmu,
    rule_name="option by letter or text, as lmms-eval reads NExT-QA",
    metrics=accuracy_metrics,
    submission=_egoschema_submission,
    lmms_tasks=("egoschema_subset",),
    lmms_metrics=("score",),
    checked="the parser as for NExT-QA; rows made up in the published layout",
)
