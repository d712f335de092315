"""`evidence.html`: the evidence of one answer to look through. One file that asks for nothing else.

Names, questions and answers come from others: they enter as data, which the page's script writes as text alone.
"""

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image

from linvt.visualization.view import EvidenceView

_PICTURE_SIDE_PX = 320
_JPEG_QUALITY = 80
_DIGITS = 6


def page(view: EvidenceView) -> str:
    """The whole document. Equal evidence gives equal bytes."""
    # In a script element, only "<" can end the data; as an escape it is the same JSON.
    data = json.dumps(_data(view), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return _HEAD + f'<script type="application/json" id="data">{data}</script>\n' + _BODY


def _data(view: EvidenceView) -> dict[str, Any]:
    answers = [{"text": None, "weights": _rounded(view.weights)}]
    if view.token_weights is not None:
        pairs = zip(view.answer_tokens, view.token_weights, strict=True)
        answers += [{"text": text, "weights": _rounded(weights)} for text, weights in pairs]
    return {
        "video": view.video,
        "model": view.model,
        "question": view.question,
        "answer": view.answer,
        "timestamps_s": view.timestamps_s.tolist(),
        "end_s": view.end_s,
        "shots_s": view.shots_s.tolist(),
        "shot_index": view.shot_index.tolist(),
        "grid": view.grid,
        "held": view.held.astype(int).tolist(),
        "answers": answers,
        "pictures": None if view.pictures is None else [_jpeg(picture) for picture in view.pictures],
    }


def _rounded(weights: np.ndarray) -> list[list[float]]:
    return [[round(float(weight), _DIGITS) for weight in row] for row in weights]


def _jpeg(pixels: np.ndarray) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_PICTURE_SIDE_PX, _PICTURE_SIDE_PX))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Where an answer came from</title>
<style>
:root { --ink: #202020; --grey: #6e6e6e; --pale: #e9eef2; --blue: #0072b2; --orange: #e69f00; }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); max-width: 1100px; margin: 24px auto;
  padding: 0 16px; }
h1 { font-size: 18px; margin: 0 0 4px; font-weight: 600; overflow-wrap: anywhere; }
#answer { color: var(--blue); font-size: 18px; overflow-wrap: anywhere; }
.small { color: var(--grey); font-size: 13px; overflow-wrap: anywhere; }
#tokens button { font: inherit; border: 1px solid #b8c4cc; background: white; border-radius: 4px; margin: 3px 4px 3px 0;
  padding: 1px 8px; cursor: pointer; }
#tokens button[aria-pressed="true"] { background: var(--blue); border-color: var(--blue); color: white; }
.controls { display: flex; flex-wrap: wrap; gap: 4px 24px; align-items: center; margin: 12px 0; font-size: 13px; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 11px system-ui, sans-serif; fill: var(--grey); }
#frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px 8px; }
figure { margin: 0; border-radius: 3px; outline-offset: 2px; }
figure.near { outline: 2px solid var(--orange); }
.view { position: relative; background: var(--pale); }
.view img { display: block; width: 100%; }
.view canvas { position: absolute; inset: 0; width: 100%; height: 100%; }
.view.bare canvas { position: static; display: block; }
figcaption { display: flex; justify-content: space-between; font-size: 12px; font-variant-numeric: tabular-nums; }
.bar { height: 4px; background: var(--pale); margin-top: 3px; }
.bar div { height: 100%; background: var(--blue); }
</style>
</head>
<body>
"""

_BODY = """<h1 id="question"></h1>
<div id="answer"></div>
<p class="small" id="source"></p>
<noscript>This page draws its data with a script of its own; it loads nothing from elsewhere.</noscript>
<div id="tokens"></div>
<svg id="curve" role="img" aria-label="weight of each frame over time, with shot boundaries"></svg>
<div class="controls">
<label>heat map <input type="range" id="opacity" min="0" max="100" value="80"></label>
<label><input type="checkbox" id="outline" checked> outline the heaviest patches (half of the weight)</label>
<label><input type="checkbox" id="sort"> heaviest frames first</label>
</div>
<div id="frames"></div>
<p class="small">Weights are the positive part of what each patch adds to the answer's log-probability, as shares of
their sum: see docs/evidence.md. Dashed: an even share. Hatched: patches that LinVT's refiner left out.</p>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const percent = (share) => (100 * share).toFixed(1) + "%";
const svgNS = "http://www.w3.org/2000/svg";
let chosen = 0;

byId("question").textContent = data.question;
byId("answer").textContent = data.answer || "(nothing)";
byId("source").textContent = `${data.video} · ${data.timestamps_s.length} frames · ${data.shots_s.length} ` +
  `shot${data.shots_s.length === 1 ? "" : "s"} · model ${data.model}`;

function draw() {
  const weights = data.answers[chosen].weights;
  drawCurve(weights.map(sum));
  drawFrames(weights);
}

function element(parent, name, attributes, text) {
  const made = document.createElementNS(svgNS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.appendChild(made);
  return made;
}

function drawCurve(frames) {
  const svg = byId("curve"), [left, right, top, bottom, width, height] = [46, 8, 18, 34, 1000, 240];
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const most = Math.max(...frames, 1 / frames.length) * 1.1;
  const x = (t) => left + t / data.end_s * (width - left - right);
  const y = (share) => height - bottom - share / most * (height - top - bottom);
  data.shots_s.forEach(([start, end], i) => {
    if (i % 2) element(svg, "rect", {x: x(start), y: top, width: Math.max(0, x(end) - x(start)),
      height: height - top - bottom, fill: "#e9eef2"});
    if (i) element(svg, "line", {x1: x(start), x2: x(start), y1: top, y2: height - bottom, stroke: "#9aa5ad"});
    const label = `${i + 1}: ${Math.round(100 * sum(frames.filter((_, f) => data.shot_index[f] === i)))}%`;
    if (data.shots_s.length > 1 && x(end) - x(start) > 44)
      element(svg, "text", {x: x((start + end) / 2), y: 12, "text-anchor": "middle"}, label);
  });
  for (let i = 0; i <= 4; i++) {
    element(svg, "text", {x: left - 6, y: y(most * i / 4) + 4, "text-anchor": "end"}, percent(most * i / 4));
    const t = data.end_s * i / 4;
    element(svg, "text", {x: x(t), y: height - 16, "text-anchor": i === 4 ? "end" : i ? "middle" : "start"},
      t.toFixed(1) + " s");
  }
  element(svg, "line", {x1: left, x2: width - right, y1: y(1 / frames.length), y2: y(1 / frames.length),
    stroke: "#202020", "stroke-dasharray": "6 4"});
  const points = frames.map((share, i) => `${x(data.timestamps_s[i])},${y(share)}`);
  element(svg, "polyline", {points: points.join(" "), fill: "none", stroke: "#0072b2", "stroke-width": 2});
  frames.forEach((share, i) => {
    const dot = element(svg, "circle", {cx: x(data.timestamps_s[i]), cy: y(share), r: 4, fill: "#0072b2"});
    element(dot, "title", {}, `${data.timestamps_s[i].toFixed(2)} s, ${percent(share)}`);
    dot.addEventListener("mouseenter", () => near(i));
    dot.addEventListener("click", () => byId(`frame-${i}`).scrollIntoView({behavior: "smooth", block: "center"}));
  });
}

function near(i) {
  document.querySelectorAll("figure").forEach((figure) => figure.classList.toggle("near", figure.id === `frame-${i}`));
}

function drawFrames(weights) {
  const frames = weights.map(sum), most = Math.max(...frames, 1e-12), heaviest = Math.max(...weights.flat(), 1e-12);
  const marked = markedPatches(weights);
  const order = frames.map((_, i) => i);
  if (byId("sort").checked) order.sort((a, b) => frames[b] - frames[a] || a - b);
  byId("frames").replaceChildren(...order.map((i) => {
    const figure = document.createElement("figure");
    figure.id = `frame-${i}`;
    const view = document.createElement("div");
    view.className = data.pictures ? "view" : "view bare";
    if (data.pictures) {
      const img = document.createElement("img");
      img.src = data.pictures[i];
      img.alt = `frame at ${data.timestamps_s[i].toFixed(2)} s`;
      view.append(img);
    }
    if (data.grid) view.append(heat(weights[i], marked[i], data.held[i], heaviest));
    const caption = document.createElement("figcaption");
    for (const text of [`${data.timestamps_s[i].toFixed(1)} s`, `shot ${data.shot_index[i] + 1}`, percent(frames[i])]) {
      const part = document.createElement("span");
      part.textContent = text;
      caption.append(part);
    }
    const bar = document.createElement("div"), fill = document.createElement("div");
    bar.className = "bar";
    fill.style.width = `${100 * frames[i] / most}%`;
    bar.append(fill);
    figure.append(view, bar, caption);
    return figure;
  }));
}

function markedPatches(weights) {
  const all = weights.flatMap((row, t) => row.map((weight, n) => [weight, t, n])).sort((a, b) => b[0] - a[0]);
  const half = sum(all.map((entry) => entry[0])) / 2;
  const marked = weights.map((row) => row.map(() => false));
  let held = 0;
  for (const [weight, t, n] of all) {
    if (held >= half) break;
    marked[t][n] = true;
    held += weight;
  }
  return marked;
}

function heat(weights, marked, held, heaviest) {
  const [rows, columns] = data.grid, canvas = document.createElement("canvas");
  const cell = Math.max(4, Math.round(480 / Math.max(rows, columns)));
  canvas.width = columns * cell;
  canvas.height = rows * cell;
  const paint = canvas.getContext("2d"), opacity = byId("opacity").value / 100;
  weights.forEach((weight, n) => {
    const [x, y] = [n % columns * cell, Math.floor(n / columns) * cell], strength = Math.sqrt(weight / heaviest);
    // From yellow to dark brown, so that lightness alone tells the order.
    const mix = (a, b) => Math.round(a + (b - a) * strength);
    paint.fillStyle = `rgba(${mix(254, 110)}, ${mix(217, 37)}, ${mix(118, 6)}, ${opacity * Math.sqrt(strength)})`;
    paint.fillRect(x, y, cell, cell);
    if (!held[n]) {
      paint.strokeStyle = "rgba(255, 255, 255, 0.8)";
      paint.lineWidth = 2;
      paint.beginPath();
      for (let d = 0; d <= 2 * cell; d += cell / 4) {
        paint.moveTo(x + Math.max(0, d - cell), y + Math.min(d, cell));
        paint.lineTo(x + Math.min(d, cell), y + Math.max(0, d - cell));
      }
      paint.stroke();
    }
  });
  if (byId("outline").checked) {
    paint.beginPath();
    marked.forEach((on, n) => {
      if (!on) return;
      const [c, r] = [n % columns, Math.floor(n / columns)];
      const at = (i, j) => i >= 0 && j >= 0 && i < rows && j < columns && marked[i * columns + j];
      const side = (x1, y1, x2, y2) => { paint.moveTo(x1 * cell, y1 * cell); paint.lineTo(x2 * cell, y2 * cell); };
      if (!at(r - 1, c)) side(c, r, c + 1, r);
      if (!at(r + 1, c)) side(c, r + 1, c + 1, r + 1);
      if (!at(r, c - 1)) side(c, r, c, r + 1);
      if (!at(r, c + 1)) side(c + 1, r, c + 1, r + 1);
    });
    for (const [color, width] of [["black", 9], ["#e69f00", 5]]) {
      paint.strokeStyle = color;
      paint.lineWidth = width;
      paint.stroke();
    }
  }
  return canvas;
}

if (data.answers.length > 1) {
  data.answers.forEach(({text}, i) => {
    const button = document.createElement("button");
    button.textContent = i ? text || "(space)" : "whole answer";
    button.setAttribute("aria-pressed", String(i === 0));
    button.addEventListener("click", () => {
      chosen = i;
      for (const other of byId("tokens").children) other.setAttribute("aria-pressed", String(other === button));
      draw();
    });
    byId("tokens").append(button);
  });
}
for (const id of ["opacity", "outline", "sort"]) byId(id).addEventListener("input", draw);
draw();
</script>
</body>
</html>
"""
