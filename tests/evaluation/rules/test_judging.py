"""Judges' replies are read strictly, and their prompts hold the question as it is."""

import pytest

from linvt.evaluation.rules.judging import (
    HALLUSION_BENCH,
    MM_VET,
    MMBENCH_VIDEO,
    VIDEO_CHATGPT,
    parse_hallusion,
    parse_mm_vet,
    parse_mmbench_video,
    parse_video_chatgpt,
)

PROTOCOLS = [VIDEO_CHATGPT, MMBENCH_VIDEO, MM_VET, HALLUSION_BENCH]


@pytest.mark.parametrize(
    ("parse", "reply", "score", "correct"),
    [
        (parse_video_chatgpt, "{'pred': 'yes', 'score': 4.8}", 4, True),
        (parse_video_chatgpt, '```python\n{"pred": "No", "score": 0}\n```', 0, False),
        (parse_video_chatgpt, "{'pred': 'no', 'score': '2'}", 2, False),
        (parse_mmbench_video, " 3\n", 3, None),
        (parse_mm_vet, "0.5", 0.5, None),
        (parse_mm_vet, "1.0 |", 1.0, None),
        (parse_hallusion, "Correct.", 1.0, True),
        (parse_hallusion, "incorrect", 0.0, False),
        (parse_hallusion, "It is unclear", 0.5, False),
    ],
)
def test_replies(parse, reply, score, correct):
    verdict = parse(reply)
    assert (verdict.score, verdict.correct) == (score, correct)


@pytest.mark.parametrize(
    ("parse", "reply"),
    [
        (parse_video_chatgpt, "yes, 5"),
        (parse_video_chatgpt, "{'pred': 'yes'}"),
        (parse_video_chatgpt, "{'pred': 'yes', 'score': 7}"),
        (parse_video_chatgpt, "{'pred': 'maybe', 'score': 3}"),
        (parse_video_chatgpt, "{'pred': __import__('os'), 'score': 3}"),
        (parse_video_chatgpt, ""),
        (parse_mmbench_video, "4"),
        (parse_mmbench_video, "Score: 3"),
        (parse_mmbench_video, "2.5"),
        (parse_mm_vet, "1.5"),
        (parse_mm_vet, "nan"),
        (parse_mm_vet, "Correctness"),
        (parse_hallusion, "yes"),
    ],
)
def test_replies_that_say_nothing(parse, reply):
    with pytest.raises(ValueError, match=r"expected|convert"):
        parse(reply)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_prompts_hold_what_is_judged_and_nothing_is_filled_twice(protocol):
    said = protocol.messages("what {answer} ?", "a {prediction} <AND> b", "{question}")
    text = said[-1]["content"]
    assert text.count("what {answer} ?") == 1
    assert text.count("a {prediction}  <AND>  b" if protocol is MM_VET else "a {prediction} <AND> b") == 1
    assert text.count("{question}") == 1
    assert said[-1]["role"] == "user"
    assert len(protocol.version) == 12


def test_versions_tell_prompts_apart():
    assert len({protocol.version for protocol in PROTOCOLS}) == len(PROTOCOLS)
