"""What yes-or-no answers say: POPE, MME, HallusionBench."""

import re
from collections.abc import Hashable, Iterable
from typing import Literal

YesNo = Literal["yes", "no"]

MME_PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def pope_answer(text: str) -> YesNo | None:
    """ "no" if the first sentence has the word No, no or not, else "yes"; None for an empty answer.

    POPE: https://github.com/RUCAIBox/POPE, evaluate.py.
    """
    if not text.strip():
        return None
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def mme_answer(text: str) -> YesNo | None:
    """The yes or no among the first four characters, in any case.

    MME: eval_tool/calculation.py of its release, `parse_pred_ans`.
    """
    start = text.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def hallusion_answer(text: str) -> YesNo | None:
    """The one of the words yes and no that the answer has; None if both or neither.

    HallusionBench without a judge: VLMEvalKit's `YOrN_Extraction`.
    """
    words = set(re.findall(r"[a-z0-9']+", text.lower())) & {"yes", "no"}
    return ("yes" if "yes" in words else "no") if len(words) == 1 else None


def all_right(rights: Iterable[tuple[Hashable, bool]]) -> list[bool]:
    """For each group, in order, whether all of it is right: HallusionBench's fAcc (figures) and qAcc (questions)."""
    groups: dict[Hashable, bool] = {}
    for group, right in rights:
        groups[group] = groups.get(group, True) and right
    return list(groups.values())
