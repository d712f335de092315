"""Curves of a run, drawn from its metrics.jsonl."""

import io
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

from linvt.training.metrics import METRICS_FILE, read_metrics

PLOT_FILE = "loss.png"
_CURVES = {"loss": "training", "loss_answer": "answer tokens", "loss_contrastive": "contrastive"}
_RATES = {
    "grad_norm": "gradient norm",
    "tokens_per_s": "tokens/s",
    "data_wait_share": "waiting for data",
    "score_spread": "spread of scores",
    "eval_accuracy": "accuracy",
}
_SMOOTHING_POINTS = 50


def plot_losses(run_dir: Path) -> Path | None:
    """Draws OUT/loss.png: training losses (raw and as a running mean), validation, learning rate. None without data."""
    lines = read_metrics(run_dir / METRICS_FILE)
    if not any("loss" in line for line in lines):
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for name, label in _CURVES.items():
        steps, values = _series(lines, name)
        if values:
            smooth = _running_mean(values, max(1, min(_SMOOTHING_POINTS, len(values) // 10)))
            (line,) = losses.plot(steps, smooth, label=label)
            losses.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.7)
    steps, values = _series(lines, "eval_loss")
    if values:
        losses.plot(steps, values, "k.-", label="validation")
    losses.set_ylabel("loss")
    losses.set_ylim(bottom=0)
    losses.grid(alpha=0.3)
    losses.legend()
    rates.plot(*_series(lines, "learning_rate"))
    rates.set_ylabel("learning rate")
    rates.set_xlabel("step")
    rates.grid(alpha=0.3)
    path = run_dir / PLOT_FILE
    unfinished = path.with_name(f"{uuid4().hex}.tmp")
    canvas.print_png(unfinished)
    os.replace(unfinished, path)
    return path


def plot_rates(lines: list[dict[str, Any]]) -> bytes:
    """A PNG of what a run's lines say beside its losses: gradient norm, speed, waiting, validation's accuracy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [(name, label) for name, label in _RATES.items() if any(name in line for line in lines)]
    figure = Figure(figsize=(9, 1.6 * len(shown)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axis, (name, label) in zip(figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0], shown):
        axis.plot(*_series(lines, name), ".-", linewidth=0.9, markersize=3)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    figure.axes[-1].set_xlabel("step")
    png = io.BytesIO()
    canvas.print_png(png)
    return png.getvalue()


def _series(lines: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    chosen = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in chosen], [value for _, value in chosen]


def _running_mean(values: list[float], window: int) -> list[float]:
    sums, means = 0.0, []
    for i, value in enumerate(values):
        sums += value - (values[i - window] if i >= window else 0.0)
        means.append(sums / min(i + 1, window))
    return means
