"""Questions in, tables out: the sums agree, and nothing drops out of them unseen."""

import pytest
from PIL import Image

from linvt.annotations import Annotation, Turn
from linvt.evaluation.questions import Question, chance_accuracy, prompt_of, questions_of
from linvt.evaluation.report import markdown_table, save_bar_chart, summarise
from linvt.evaluation.results import Result


def _annotations() -> list[Annotation]:
    order = Turn(question="which is first ?", answer="red", family="order", choices=("red", "blue"))
    count = Turn(question="how many jumps ?", answer="two", family="count", choices=("zero", "one", "two", "three"))
    free = Turn(question="what happens ?", answer="a jump")
    return [
        Annotation(media_id="a.mp4", kind="video", turns=(order, count)),
        Annotation(media_id="b.mp4", kind="video", turns=(order,)),
        Annotation(media_id="c.png", kind="image", turns=(free,)),
        Annotation(media_id="a.mp4", kind="video", caption="only a caption"),
        Annotation(media_id="a.mp4", kind="video", turns=(count,)),
    ]


def test_a_question_about_a_section_is_refused():
    turn = Turn(question="what happens ?", answer="a jump")
    section = Annotation(media_id="a.mp4", kind="video", turns=(turn,), section_s=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"a\.mp4: asked about a section of it"):
        questions_of([section])


def _result(question: Question, method: str, prediction: str | None) -> Result:
    return Result(
        method=method,
        question_id=question.question_id,
        media_id=question.media_id,
        kind=question.kind,
        family=question.family,
        question=question.question,
        answer=question.answer,
        prediction=prediction,
        correct=prediction == question.answer,
    )


def test_every_question_has_its_own_id():
    ids = [question.question_id for question in questions_of(_annotations())]
    assert ids == ["a.mp4#0", "a.mp4#1", "b.mp4#0", "c.png#0", "a.mp4#2"]


def test_prompt_shows_choices_only_when_told():
    question = questions_of(_annotations())[0]
    assert prompt_of(question, show_choices=False) == "which is first ?"
    shown = prompt_of(question, show_choices=True)
    assert shown.splitlines()[1:3] == ["A. red", "B. blue"]
    free = questions_of(_annotations())[3]
    assert prompt_of(free, show_choices=True) == "what happens ?"


def test_chance_is_the_mean_over_questions():
    questions = questions_of(_annotations())
    assert chance_accuracy(questions) == pytest.approx((1 / 2 + 1 / 4 + 1 / 2 + 1 / 4) / 4)
    assert chance_accuracy(questions[3:4]) is None


def test_summary_reconciles():
    questions = questions_of(_annotations())
    order_a, count_a, order_b, image, count_a2 = questions
    results = [
        _result(order_a, "linvt", "red"),
        _result(count_a, "linvt", "one"),
        _result(count_a2, "linvt", "two"),
        _result(order_b, "linvt", None),  # its video is not in the cache
        _result(image, "image", "a jump"),
    ]
    summary = summarise(questions, results)
    linvt = summary["video"]["methods"]["linvt"]
    assert (linvt["answered"], linvt["missing"]) == (3, 1)
    assert linvt["answered"] + linvt["missing"] == summary["video"]["questions"]
    assert linvt["overall"]["accuracy"] == pytest.approx(2 / 3)
    assert linvt["family_mean"]["accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert linvt["families"]["order"]["total"] == 1
    assert summary["image"]["methods"]["image"]["overall"]["correct"] == 1
    assert summary["image"]["chance"] == {"overall": None, "families": {"all": None}, "without_choices": 1}


def test_table_and_chart(tmp_path):
    questions = questions_of(_annotations())
    results = [_result(question, method, "red") for question in questions for method in ("linvt", "text_only")]
    results += [_result(question, "image", None) for question in questions if question.kind == "image"]
    summary = summarise(questions, results)
    table = markdown_table(summary)
    assert "| linvt | 50.0 [15.0, 85.0] | 50.0 [" in table
    assert "| chance | 37.5 | 37.5 | 25.0 | 50.0 |" in table
    assert "(1 missing)" in table
    assert "| questions | 4 | 2 | 2 | 2 |" in table
    save_bar_chart(summary, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.format == "PNG"
        assert len(chart.convert("RGB").getcolors(1 << 20)) > 10
