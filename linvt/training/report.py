"""`OUT/report.html`: how a run went, for the person who started it. One file that asks for nothing else.

Made from what the run has written so far, so it tells of a run that was stopped or that failed, too.
"""

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2

from linvt.training.best import BEST_LINK
from linvt.training.metrics import METRICS_FILE, read_metrics
from linvt.training.plots import plot_losses, plot_rates
from linvt.training.run_folder import CONFIG_FILE, LEFT_OUT_FILE, write_text

REPORT_FILE = "report.html"
_MOST_LEFT_OUT = 200
_LINES_OF_A_TABLE = 20


def write_report(run_dir: Path, *, ended: str) -> Path:
    """Writes OUT/report.html and OUT/loss.png. `ended` says how the run came to its end."""
    lines = read_metrics(run_dir / METRICS_FILE)
    losses = plot_losses(run_dir)
    left_out_file = run_dir / LEFT_OUT_FILE
    rows = left_out_file.read_text().splitlines() if left_out_file.is_file() else []
    left_out = [json.loads(row) for row in rows]
    training = [line for line in lines if "loss" in line]
    validations = [line for line in lines if "eval_loss" in line]
    best = run_dir / BEST_LINK
    page = _PAGE.render(
        name=run_dir.name,
        ended=ended,
        config=json.loads((run_dir / CONFIG_FILE).read_text()),
        training=_thinned(training),
        training_columns=_columns(training),
        validations=_thinned(validations),
        validation_columns=_columns(validations),
        best=best.resolve().name if best.exists() else None,
        left_out=left_out[:_MOST_LEFT_OUT],
        num_left_out=len(left_out),
        reasons=Counter(item["reason"] for item in left_out).most_common(),
        pictures=[_as_url(losses.read_bytes()), _as_url(plot_rates(lines))] if losses is not None else [],
    )
    path = run_dir / REPORT_FILE
    write_text(path, page)
    return path


def _as_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _columns(lines: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line))


def _thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most so many of them, evenly spread, the first and the last among them."""
    if len(lines) <= _LINES_OF_A_TABLE:
        return lines
    return [lines[i * (len(lines) - 1) // (_LINES_OF_A_TABLE - 1)] for i in range(_LINES_OF_A_TABLE)]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


# Names of files and of media are others': everything is escaped.
_ENVIRONMENT = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
_ENVIRONMENT.filters["shown"] = _shown
_PAGE = _ENVIRONMENT.from_string(
    """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{{ name }}: training</title>
<style>
  body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #222 }
  table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums }
  td, th { padding: .15rem .6rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap }
  img { max-width: 100% }
  .wide td { white-space: normal; overflow-wrap: anywhere }
</style>
<h1>{{ name }}</h1>
<p>Stage {{ config.stage }}, {{ config.backbone }}. <b>{{ ended }}</b></p>
{% for picture in pictures %}<p><img src="{{ picture }}" alt="curves of the run"></p>
{% endfor %}
{% macro table(columns, lines) %}
<table>
<tr>{% for column in columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for line in lines %}<tr>{% for column in columns %}<td>{{ line.get(column) | shown }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endmacro %}
{% if validations %}<h2>Validation</h2>
{% if best %}<p>The best model is <code>{{ best }}</code>.</p>{% endif %}
{{ table(validation_columns, validations) }}{% endif %}
{% if training %}<h2>Steps</h2>
{{ table(training_columns, training) }}{% endif %}
<h2>Data</h2>
<p>{{ num_left_out }} annotated media left out{% if num_left_out > left_out | length %}, the first
{{ left_out | length }} of them below{% endif %}.</p>
{% if reasons %}<table>
{% for reason, count in reasons %}<tr><td>{{ reason }}</td><td>{{ count }}</td></tr>
{% endfor %}</table>
<details><summary>Which</summary><table class="wide">
{% for item in left_out %}<tr><td>{{ item.media_id }}</td><td>{{ item.reason }}</td></tr>
{% endfor %}</table></details>{% endif %}
<h2>Configuration</h2>
<table class="wide">
{% for field, value in config.items() %}<tr><td>{{ field }}</td><td>{{ value | shown }}</td></tr>
{% endfor %}</table>
</html>
"""
)
