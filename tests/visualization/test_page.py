"""The page: one file that holds all numbers, asks for nothing else, and takes no orders from what it shows."""

import base64
import html.parser
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from linvt.visualization.page import page
from tests.visualization.views import make_view

HOSTILE = '</script><script>document.title = "taken"</script><img src=x onerror="document.title = 1">'


class _Elements(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def parsed(document: str) -> _Elements:
    elements = _Elements()
    elements.feed(document)
    elements.close()
    assert not elements.open, "every element is closed"
    return elements


def test_it_holds_the_numbers_of_the_evidence() -> None:
    view = make_view(num_frames=6, num_shots=3, num_answer_tokens=2)
    data = json.loads(parsed(page(view)).scripts[0])
    assert data["timestamps_s"] == view.timestamps_s.tolist()
    assert data["shots_s"] == view.shots_s.tolist()
    assert data["shot_index"] == view.shot_index.tolist()
    assert np.allclose(data["answers"][0]["weights"], view.weights, atol=1e-6)
    assert [answer["text"] for answer in data["answers"]] == [None, "word0", "word1"]
    assert np.allclose([answer["weights"] for answer in data["answers"][1:]], view.token_weights, atol=1e-6)
    pictures = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in data["pictures"]]
    assert [picture.size for picture in pictures] == [(160, 96)] * 6


def test_it_asks_for_nothing_else() -> None:
    document = page(make_view())
    elements = parsed(document)
    assert not [tag for tag, _ in elements.elements if tag in ("link", "iframe", "object", "img")]
    assert not [attrs for _, attrs in elements.elements if "src" in attrs or "href" in attrs]
    assert set(re.findall(r"https?://[^\"' ]+", document)) == {"http://www.w3.org/2000/svg"}, "a namespace, no address"
    (policy,) = [attrs["content"] for tag, attrs in elements.elements if attrs.get("http-equiv")]
    assert policy.startswith("default-src 'none'")


def test_hostile_texts_stay_text() -> None:
    view = make_view(question=HOSTILE, answer=HOSTILE, video=HOSTILE, model=HOSTILE, num_answer_tokens=1)
    plain, hostile = parsed(page(make_view(num_answer_tokens=1))), parsed(page(view))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert json.loads(hostile.scripts[0])["question"] == HOSTILE
    assert "innerHTML" not in page(view)


def test_equal_evidence_gives_equal_bytes() -> None:
    assert page(make_view()) == page(make_view())


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no browser here")
@pytest.mark.parametrize("fields", [{}, {"size": None}, {"grid": None}, {"num_frames": 1, "num_shots": 1}])
def test_a_browser_draws_it(fields, tmp_path) -> None:
    assert CHROMIUM is not None
    view = make_view(**{"num_frames": 6, "num_shots": 3, "num_answer_tokens": 2, "question": HOSTILE} | fields)
    (tmp_path / "evidence.html").write_text(page(view))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run(
        [*command, "--dump-dom", str(tmp_path / "evidence.html")], capture_output=True, text=True, timeout=120
    )
    drawn = done.stdout
    assert drawn.count("<figcaption>") == len(view.timestamps_s)
    assert drawn.count("<canvas") == (len(view.timestamps_s) if view.grid else 0)
    assert drawn.count("<circle") == len(view.timestamps_s)
    assert drawn.count("<button") == 3
    assert "<title>Where an answer came from</title>" in drawn, "the hostile question did not run"
    assert f"{100 * view.frame_weights[0]:.1f}%" in drawn
