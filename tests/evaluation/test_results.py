"""Answers on disk: nothing lost, nothing mixed, nothing answered twice."""

import json

import pytest

from linvt.evaluation.results import Result, ResultLog, read_results


def _result(i: int, method: str = "linvt") -> Result:
    return Result(
        method=method,
        question_id=f"v.mp4#{i}",
        media_id="v.mp4",
        kind="video",
        family="order",
        question="q ?",
        answer="é",
        prediction="é\nx",
        correct=False,
    )


def _open(out, identity=None, on_existing="resume") -> ResultLog:
    return ResultLog(out, identity or {"model": "m", "data": ["d"]}, on_existing=on_existing)


def test_resume_sees_everything_written(tmp_path):
    log = _open(tmp_path / "out", on_existing="fail")
    log.append([_result(0), _result(1)])
    log.append([_result(0, "text_only")])
    log.close()
    again = _open(tmp_path / "out")
    assert again.done == {("linvt", "v.mp4#0"), ("linvt", "v.mp4#1"), ("text_only", "v.mp4#0")}
    assert again.results[0] == _result(0)


@pytest.mark.parametrize("kept_bytes", [1, 20, 100])
def test_a_line_cut_short_by_a_crash_is_answered_again(tmp_path, kept_bytes):
    log = _open(tmp_path / "out")
    log.append([_result(0), _result(1)])
    log.close()
    whole = log.path.read_bytes()
    first_line = whole.index(b"\n") + 1
    log.path.write_bytes(whole[: first_line + kept_bytes])
    resumed = _open(tmp_path / "out")
    assert resumed.done == {("linvt", "v.mp4#0")}
    resumed.append([_result(1)])
    resumed.close()
    assert log.path.read_bytes() == whole


def test_fail_and_overwrite(tmp_path):
    log = _open(tmp_path / "out", on_existing="fail")
    log.append([_result(0)])
    log.close()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds results already"):
        _open(tmp_path / "out", on_existing="fail")
    assert _open(tmp_path / "out", {"model": "other"}, on_existing="overwrite").done == set()
    assert read_results(log.path) == []
    assert (tmp_path / "out" / "notes.txt").exists()


def test_results_of_another_model_are_not_mixed_in(tmp_path):
    _open(tmp_path / "out").close()
    with pytest.raises(ValueError, match="model: 'm' there, 'n' now"):
        _open(tmp_path / "out", {"model": "n", "data": ["d"]})


def test_lines_are_plain_json(tmp_path):
    log = _open(tmp_path / "out")
    log.append([_result(0)])
    log.close()
    (line,) = log.path.read_text().splitlines()
    assert json.loads(line)["prediction"] == "é\nx"
