"""How the benchmarks ask a judge, and what its replies mean. Nothing here sends anything.

A reply is read strictly: what is not of the form that was asked for raises ValueError, and is asked again.
"""

import ast
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from linvt.evaluation.entry import Verdict

_PROMPTS = Path(__file__).parent.parent / "prompts"


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeProtocol:
    """One benchmark's way of asking a judge."""

    name: str
    judge_there: str
    """The judge that the benchmark's own scores were made with."""
    messages: Callable[[str, str, str], list[dict[str, str]]]
    """(question, right answer, prediction) as a conversation."""
    parse: Callable[[str], Verdict]
    """What a reply says. Raises ValueError."""
    max_tokens: int
    texts: tuple[str, ...]
    """Names of the prompt files."""
    told_again: str = ""
    """Put behind the question once a reply could not be read."""

    @property
    def version(self) -> str:
        """The first twelve digits of the SHA-256 of the prompts: another wording is another judge."""
        return hashlib.sha256("\0".join(map(_text, self.texts)).encode()).hexdigest()[:12]


@cache
def _text(name: str) -> str:
    return (_PROMPTS / name).read_text(encoding="utf-8")


def _filled(name: str, question: str, answer: str, prediction: str) -> str:
    # str.format would stumble over other braces, and over those within a prediction.
    head, _, rest = _text(name).partition("{question}")
    middle, _, rest = rest.partition("{answer}")
    later, _, tail = rest.partition("{prediction}")
    return f"{head}{question}{middle}{answer}{later}{prediction}{tail}"


def _video_chatgpt_messages(question: str, answer: str, prediction: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": _text("video_chatgpt_system.txt")},
        {"role": "user", "content": _filled("video_chatgpt.txt", question, answer, prediction)},
    ]


def parse_video_chatgpt(reply: str) -> Verdict:
    """ "{'pred': 'yes', 'score': 4}", also within other text; a broken score counts as the integer below it."""
    start, end = reply.find("{"), reply.find("}")
    try:
        found = ast.literal_eval(reply[start : end + 1])
        said, score = str(found["pred"]).lower(), int(found["score"])
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        raise ValueError("expected a dictionary with 'pred' and 'score'") from None
    if not 0 <= score <= 5 or ("yes" not in said and "no" not in said):
        raise ValueError(f"expected a yes or no and a score from 0 to 5, got {said[:20]!r} and {score}")
    return Verdict(score=score, correct="yes" in said)


def _mmbench_video_messages(question: str, answer: str, prediction: str) -> list[dict[str, str]]:
    asked = f"Question: {question}\nGroundtruth answer: {answer}\nCandidate answer: {prediction}\nYour response: "
    return [{"role": "system", "content": _text("mmbench_video.txt")}, {"role": "user", "content": asked}]


def parse_mmbench_video(reply: str) -> Verdict:
    """A single integer from 0 to 3."""
    if reply.strip() not in ("0", "1", "2", "3"):
        raise ValueError("expected one of 0, 1, 2 and 3")
    return Verdict(score=int(reply), correct=None)


def _mm_vet_messages(question: str, answer: str, prediction: str) -> list[dict[str, str]]:
    answer = answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return [{"role": "user", "content": _text("mm_vet.txt") + "\n" + " | ".join((question, answer, prediction, ""))}]


def parse_mm_vet(reply: str) -> Verdict:
    """A first word that is a number from 0 to 1."""
    score = float(reply.split(" ")[0].strip())
    if not 0 <= score <= 1:
        raise ValueError(f"expected a number from 0 to 1, got {score}")
    return Verdict(score=score, correct=None)


def _hallusion_messages(question: str, answer: str, prediction: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": _filled("hallusion_bench.txt", question, answer, prediction)}]


def parse_hallusion(reply: str) -> Verdict:
    """ "correct", "incorrect" or "unclear". Unclear ones score ½, see `hallusion_rows`."""
    said = reply.lower()
    if "incorrect" in said:
        return Verdict(score=0.0, correct=False)
    if "correct" in said:
        return Verdict(score=1.0, correct=True)
    if "unclear" in said:
        return Verdict(score=0.5, correct=False)
    raise ValueError("expected correct, incorrect or unclear")


VIDEO_CHATGPT = JudgeProtocol(
    name="Video-ChatGPT",
    judge_there="gpt-3.5-turbo",
    messages=_video_chatgpt_messages,
    parse=parse_video_chatgpt,
    max_tokens=64,
    texts=("video_chatgpt_system.txt", "video_chatgpt.txt"),
)
MMBENCH_VIDEO = JudgeProtocol(
    name="MMBench-Video",
    judge_there="gpt-4-1106-preview",
    messages=_mmbench_video_messages,
    parse=parse_mmbench_video,
    max_tokens=8,
    texts=("mmbench_video.txt",),
)
MM_VET = JudgeProtocol(
    name="MM-Vet",
    judge_there="gpt-4-0613",
    messages=_mm_vet_messages,
    parse=parse_mm_vet,
    max_tokens=3,
    texts=("mm_vet.txt",),
    told_again="\nPredict the correctness of the answer (digit): ",
)
HALLUSION_BENCH = JudgeProtocol(
    name="HallusionBench",
    judge_there="gpt-4",
    messages=_hallusion_messages,
    parse=parse_hallusion,
    max_tokens=16,
    texts=("hallusion_bench.txt",),
)
