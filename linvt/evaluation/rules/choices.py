"""Which option an answer names, as the multiple-choice benchmarks themselves read it. None: no option can be read."""

import re
import string

# As published: two commas are missing there, so the four prefixes beside them are never cut off.
_VIDEO_MME_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
    "Answer:",
    "Option:",
    "The correct answer",
    "The correct option",
)
_LONG_VIDEO_BENCH_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)


def video_mme_letter(text: str) -> str | None:
    """The first of the capitals A to D behind common openings, such as "The answer is".

    Video-MME: https://github.com/thanku-all/parse_answer, eval_your_results.py. Openings that it does not know may hold
    such a capital: "Best option: C" is read as B.
    """
    return _first_capital(text, _VIDEO_MME_PREFIXES, "[ABCD]")


def long_video_bench_letter(text: str) -> str | None:
    """The first of the capitals A to E behind common openings.

    LongVideoBench: its authors' task in lmms-eval, longvideobench/utils.py, which draws a random letter where there is
    none.
    """
    return _first_capital(text, _LONG_VIDEO_BENCH_PREFIXES, "[ABCDE]")


def _first_capital(text: str, prefixes: tuple[str, ...], letters: str) -> str | None:
    text = text.strip()
    for prefix in prefixes:
        text = text.replace(prefix, "")
    found = re.search(letters, text)
    return found[0] if found else None


def mvbench_is_right(text: str, letter: str) -> bool:
    """Whether the answer's first word and "(a)", the right option, are one within the other; case does not matter.

    MVBench: https://github.com/OpenGVLab/Ask-Anything, video_chat2/mvbench.ipynb, `check_ans`, after the answer's
    opening "Best option:(". A first word without a letter, which is part of any option there, is wrong here.
    """
    first = text.lower().strip().split(" ")[0]
    option = f"({letter.lower()})"
    if not re.search("[a-z]", first):
        return False
    return first.replace(".", "") in option or option in first


def mlvu_letter(text: str) -> str | None:
    """What stands before the first ")", else the whole answer, if that is a capital.

    MLVU: https://github.com/JUNJIE99/MLVU, evaluation/multiple_choice_evaluation/choice_bench.py, `check_ans`, after
    the answer's opening "Best Option: (".
    """
    text = text.strip()
    if ")" in text:
        end = text.index(")")
        text = text[max(0, end - 1) : end]
    return text if len(text) == 1 and text in string.ascii_uppercase else None


def first_character(text: str) -> str | None:
    """The first character of an answer, if it is a letter; case is kept.

    VideoVista: https://github.com/HITsz-TMG/VideoVista, VideoVista/evaluation/evaluation_videovista.py.
    """
    text = text.strip()
    return text[0] if text[:1] in set(string.ascii_letters) else None


def seed_bench_letter(text: str) -> str | None:
    """The first character of an answer, as a capital, if it is a letter.

    SEED-Bench, generated answers: lmms-eval, seedbench/utils.py, after LLaVA's scripts/convert_seed_for_submission.py.
    The benchmark's own scorer ranks the options by likelihood instead, which an endpoint's answers do not give.
    """
    letter = first_character(text)
    return letter.upper() if letter else None


def ai2d_letter(text: str) -> str | None:
    """The capital before a full stop with which an answer begins; else the whole answer, if it is one letter.

    AI2D: lmms-eval, ai2d/utils.py and ai2d.yaml (exact match, case and punctuation ignored). The benchmark is older
    than such answers and has no rule of its own.
    """
    found = re.match(r"\s*([A-Z])\.", text)
    whole = found[1] if found else "".join(c for c in text if c not in string.punctuation).upper()
    return whole if len(whole) == 1 and whole in string.ascii_uppercase else None
