import base64
import json
import shlex
from html.parser import HTMLParser

from linvt.command import parse
from linvt.model_card import command_of
from linvt.training.config import TrainConfig, to_json
from linvt.training.report import write_report
from tests.training.inputs import small_config


class _Reader(HTMLParser):
    """What a page holds: its text, its pictures, and what it would fetch or run."""

    def __init__(self):
        super().__init__()
        self.text, self.pictures, self.reaches_out = "", [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "link", "iframe", "object"):
            self.reaches_out.append(tag)
        for name in ("src", "href"):
            if name in given and not given[name].startswith("data:"):
                self.reaches_out.append(given[name])
        if tag == "img":
            self.pictures.append(base64.b64decode(given["src"].split(",", 1)[1]))

    def handle_data(self, data):
        self.text += data


def _written(tmp_path, inputs, lines, left_out=(), ended="Finished."):
    config = small_config(inputs, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "left_out.jsonl").write_text("".join(json.dumps(item) + "\n" for item in left_out))
    reader = _Reader()
    reader.feed(write_report(tmp_path, ended=ended).read_text())
    return reader


def test_a_report_tells_all_and_asks_for_nothing(inputs, tmp_path):
    lines = [
        {"step": step, "loss": 8.0 / step, "learning_rate": 0.1, "grad_norm": 1.0, "data_wait_share": 0.25}
        for step in range(1, 101)
    ]
    lines += [{"step": 50, "eval_loss": 0.3125, "eval_accuracy": 0.5}, {"step": 100, "eval_loss": 0.4375}]
    left_out = [{"media_id": f"<script>{i}</script>.mp4", "reason": "not in the cache"} for i in range(300)]
    page = _written(tmp_path, inputs, lines, left_out)
    assert page.reaches_out == []
    assert len(page.pictures) == 2
    assert all(picture.startswith(b"\x89PNG") for picture in page.pictures)
    for told in ("Finished.", "0.3125", "0.4375", "300 annotated media left out", "not in the cache", "learning_rate"):
        assert told in page.text
    assert "<script>7</script>.mp4" in page.text
    assert "<script>299</script>.mp4" not in page.text
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_ended_before_its_first_step_has_a_report_too(inputs, tmp_path):
    page = _written(tmp_path, inputs, [], ended="ValueError: no <b>data</b>")
    assert page.pictures == []
    assert "ValueError: no <b>data</b>" in page.text


def test_the_command_of_a_run_makes_that_run(inputs, tmp_path):
    config = small_config(inputs, tmp_path, stage=2, lora_dropout=0.1, gradient_checkpointing=True, eval_cache="a b")
    words = shlex.split(command_of(config))
    assert words[:2] == ["python", "jobs/train.py"]
    assert parse(TrainConfig, words[2:]) == config
