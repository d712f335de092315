"""Does the evidence name what an answer rests on? Taking it away must make the answer less likely than chance does.

    python benchmarks/evidence_deletion.py [--videos N] [--questions-per-video N] [--out RESULTS.json]

The embedded tiny model answers questions about rendered test videos. For every way of weighing frames, the heaviest 2,
4, 8 and 16 of its 32 frames are masked, as if they had not been sampled, and everything behind them is computed again.
The same with patches: the heaviest 36 and 115 of 1,152 are replaced by the mean of all patches. The table has the mean
fall of the answer's log-probability in nats, its 95% interval (bootstrap over videos), and how it compares with as many
frames or patches drawn at random (8 draws).

It also counts how much of the evidence lies in the shot that a question is about, where the question says so.

Ways of weighing (docs/evidence.md): the map alone; the map weighted by the LLM's attention to each video token (mean
over layers, heads and answer tokens), by |gradient · token|, by integrated gradients per video token; integrated
gradients through the map, which is what `linvt.evidence` does; and, as a ceiling for single frames, the fall when each
frame is left out, which costs a pass over LinVT and LLM for every frame.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linvt.answering import embed_prompt, fill_slots, generate
from linvt.evidence import as_weights, frame_token_gains, integrated_gradients, map_weights, over_frames
from linvt.serving.feature_spec import trained_feature_spec
from linvt.shards import CachedVideo
from linvt.shots import load_detector
from linvt.tiny.scene import NEEDLE_SHAPE
from linvt.tiny.video_plot import FRAMES_PER_SECOND, Plot, make_plot
from linvt.tiny.vocabulary import ORDINALS
from linvt.tiny.world import SPLITS, write_video
from linvt.tiny.world_config import WorldConfig
from linvt.training.batches import pad_ids, relative_times
from linvt.video_llm import VideoLLM
from linvt.visualization.inputs import encode_file

MODEL = Path(__file__).parent.parent / "linvt" / "tiny" / "weights" / "video_llm"
FRAMES_OUT, PATCHES_OUT, DRAWS, BATCH = (2, 4, 8, 16), (36, 115), 8, 32
OURS = "integrated gradients through the map"


class Case:
    """One question about one video, and the log-probability of its answer under changes to the video."""

    def __init__(self, llm: VideoLLM, video: CachedVideo, question: str) -> None:
        self.llm, self.video, self.question = llm, video, question
        self.messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
        (self.slot,) = fill_slots(llm, self.messages, [video], return_maps=True)
        (self.ids,) = generate(llm, [embed_prompt(llm, self.messages, [self.slot])], max_new_tokens=16)
        self.tokens_TNC = video.tokens.float()
        self.whole = float(self.log_prob(self.tokens_TNC[None])[0])

    def token_log_probs(self, tokens_QC: Tensor) -> Tensor:
        return self.llm.answer_log_probs(self.messages, [tokens_QC], self.ids)

    @torch.no_grad()
    def log_prob(self, tokens_BTNC: Tensor, frame_mask_BT: Tensor | None = None) -> Tensor:
        """[B]: of the whole answer, for variants of the video's frame tokens."""
        backbone = self.llm.backbone
        b = len(tokens_BTNC)
        instruction, mask = pad_ids([backbone.text_ids(self.question)] * b, backbone.pad_id)
        times = relative_times(self.video).expand(b, -1)
        seen_BQC = self.llm.encode_instructions(
            tokens_BTNC, instruction, mask, times=times, frame_mask=frame_mask_BT
        ).tokens
        before, after = (torch.tensor(part) for part in backbone.prompt(self.messages).segments)
        after = torch.cat([after, torch.tensor(self.ids)])
        embeds_BLC = torch.cat(
            [backbone.embed(before).expand(b, -1, -1), seen_BQC, backbone.embed(after).expand(b, -1, -1)], dim=1
        )
        hidden = backbone.hidden_states(embeds_BLC, torch.ones(embeds_BLC.shape[:2], dtype=torch.bool))
        log_probs_BRV = backbone.head(hidden[:, -len(self.ids) - 1 : -1]).float().log_softmax(-1)
        return log_probs_BRV.gather(-1, torch.tensor(self.ids).expand(b, -1)[..., None]).sum((1, 2))

    def falls(self, tokens: list[Tensor], masks: list[Tensor] | None = None) -> list[float]:
        """How far the answer's log-probability falls under each change."""
        falls: list[float] = []
        for start in range(0, len(tokens), BATCH):
            piece = torch.stack(tokens[start : start + BATCH])
            mask = None if masks is None else torch.stack(masks[start : start + BATCH])
            falls += (self.whole - self.log_prob(piece, mask)).tolist()
        return falls


def weights_of(case: Case) -> tuple[dict[str, Tensor], float]:
    """Each way's weights [T, N], and by how many nats the gains of ours miss what they should sum to."""
    seen_QC, map_QS, (t, _, _) = case.slot.tokens, case.slot.map, case.tokens_TNC.shape
    assert map_QS is not None

    def through_map(use_Q: Tensor) -> Tensor:
        return as_weights((use_Q @ map_QS).reshape(t, -1), map_QS)

    leaf_QC = seen_QC.clone().requires_grad_(True)
    (gradient_QC,) = torch.autograd.grad(case.token_log_probs(leaf_QC).sum(), leaf_QC)
    integrated_1QC = integrated_gradients(case.token_log_probs, seen_QC)
    mean_C = seen_QC.mean(0)
    gains_1TN = frame_token_gains(integrated_1QC, seen_QC, map_QS, case.tokens_TNC)
    with torch.no_grad():
        gained = case.whole - float(case.token_log_probs(mean_C.expand_as(seen_QC)).sum())
    weights = {
        "the map alone": map_weights(map_QS, t),
        "attention": through_map(_attention(case)),
        "|gradient · token|": through_map((gradient_QC * seen_QC).sum(-1).abs()),
        "integrated gradients per video token": through_map((integrated_1QC[0] * (seen_QC - mean_C)).sum(-1).clamp(0)),
        OURS: as_weights(gains_1TN, map_QS)[0],
    }
    return weights, abs(float(gains_1TN.sum()) - gained)


@torch.no_grad()
def _attention(case: Case) -> Tensor:
    """[Q]: attention from where answer tokens are predicted to each video token, the mean over all else."""
    backbone = case.llm.backbone
    decoder = backbone._base.get_decoder()
    *before, after = backbone.prompt(case.messages).segments
    embeds_LC = case.llm._splice([*before, (*after, *case.ids)], [case.slot.tokens])
    decoder.set_attn_implementation("eager")  # the fast kernels give no weights
    out = decoder(inputs_embeds=embeds_LC[None], output_attentions=True, use_cache=False)
    decoder.set_attn_implementation("sdpa")
    first, q = len(before[0]), len(case.slot.tokens)
    return torch.stack(out.attentions)[:, 0, :, -len(case.ids) - 1 : -1, first : first + q].mean((0, 1, 2))


def measure(case: Case, generator: torch.Generator) -> dict[str, Any]:
    """{"frames" | "patches": {way: {how many: fall}}} of one answer, and how well the gains add up."""
    weights, error = weights_of(case)
    t, n, c = case.tokens_TNC.shape
    frame_orders = {way: [over_frames(w).argsort(descending=True)] for way, w in weights.items()}
    single = case.falls([case.tokens_TNC] * t, list(~torch.eye(t, dtype=torch.bool)))
    frame_orders["each frame left out"] = [torch.tensor(single).argsort(descending=True)]
    frame_orders["random"] = [torch.randperm(t, generator=generator) for _ in range(DRAWS)]
    patch_orders = {way: [w.flatten().argsort(descending=True)] for way, w in weights.items()}
    patch_orders["random"] = [torch.randperm(t * n, generator=generator) for _ in range(DRAWS)]

    def masked(order: Tensor, count: int) -> Tensor:
        return torch.ones(t, dtype=torch.bool).index_fill(0, order[:count], False)

    def blanked(order: Tensor, count: int) -> Tensor:
        flat_SC = case.tokens_TNC.reshape(t * n, c)
        return flat_SC.index_copy(0, order[:count], flat_SC.mean(0).expand(count, -1)).reshape(t, n, c)

    frames = [(way, count, o) for way, orders in frame_orders.items() for count in FRAMES_OUT for o in orders]
    patches = [(way, count, o) for way, orders in patch_orders.items() for count in PATCHES_OUT for o in orders]
    falls_f = case.falls([case.tokens_TNC] * len(frames), [masked(order, count) for _, count, order in frames])
    falls_p = case.falls([blanked(order, count) for _, count, order in patches])
    return {
        "frames": _mean_falls(frames, falls_f),
        "patches": _mean_falls(patches, falls_p),
        "error": error,
        "weights": {way: over_frames(w).tolist() for way, w in weights.items()},
    }


def _mean_falls(changes: list[tuple[str, int, Tensor]], falls: list[float]) -> dict[str, dict[int, float]]:
    lists: dict[str, dict[int, list[float]]] = {}
    for (way, count, _), fall in zip(changes, falls, strict=True):
        lists.setdefault(way, {}).setdefault(count, []).append(fall)
    return {way: {count: float(np.mean(values)) for count, values in row.items()} for way, row in lists.items()}


def asked_shot(plot: Plot, question: str, family: str) -> int | None:
    """The shot that a question is about; None where it is about several, or does not say."""
    if family == "end state":
        return len(plot.shots) - 1
    if family == "nth shot":
        return next(i for i, ordinal in enumerate(ORDINALS) if f"the {ordinal} shot" in question)
    if family in ("direction", "change", "needle", "which shot"):
        needle = family == "needle"
        found = [
            i
            for i, shot in enumerate(plot.shots)
            if any(a.thing.shape == NEEDLE_SHAPE if needle else a.thing.name in question for a in shot.actors)
        ]
        return found[0] if len(found) == 1 else None
    return None


def shot_of_frames(plot: Plot, video: CachedVideo) -> np.ndarray:
    """[T]: in which of the plot's shots each frame lies."""
    ends_s = np.cumsum([shot.num_frames for shot in plot.shots]) / FRAMES_PER_SECOND
    return np.searchsorted(ends_s[:-1], video.timestamps_s, side="right")


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    llm = VideoLLM.from_pretrained(MODEL)
    detector = load_detector("none")
    spec, batch_size = trained_feature_spec(MODEL, detector="none")
    generator = torch.Generator().manual_seed(0)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as world:
        config = WorldConfig(out=world)
        (Path(world) / "test" / "videos").mkdir(parents=True)
        for index in range(arguments.videos):
            row = write_video(config, "test", index)
            is_long = np.random.default_rng([0, SPLITS.index("test"), index, 1]).random() < config.long_share
            plot = make_plot(0, "test", index, long=is_long)
            uri = str(Path(world) / row["media"])
            video = encode_file(uri, llm.backbone, spec, detector, batch_size=batch_size)
            step = max(1, len(row["qa"]) // arguments.questions_per_video)
            for turn in np.roll(row["qa"], index)[::step][: arguments.questions_per_video]:
                case = Case(llm, video, turn["question"])
                if not case.ids:
                    continue
                result = measure(case, generator)
                shot = asked_shot(plot, turn["question"], turn["family"])
                inside = None if shot is None else shot_of_frames(plot, video) == shot
                weights = result.pop("weights")
                if inside is not None:
                    result["in_shot"] = {way: float(np.array(w)[inside].sum()) for way, w in weights.items()}
                    result["in_shot"]["random"] = float(inside.mean())
                correct = llm.backbone.decode(case.ids) == turn["answer"]
                results.append({"video": index, "family": turn["family"], "correct": correct, **result})
            print(f"{index + 1}/{arguments.videos} videos, {len(results)} answers", file=sys.stderr, flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(results))
    return results


def interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Mean and the ends of its 95% interval, by resampling groups."""
    rng = np.random.default_rng(0)
    names = np.unique(groups)
    sums = np.array([values[groups == g].sum() for g in names])
    counts = np.array([(groups == g).sum() for g in names])
    draws = rng.integers(len(names), size=(2000, len(names)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    return float(values.mean()), *map(float, np.percentile(means, [2.5, 97.5]))


def table(results: list[dict[str, Any]], part: str) -> None:
    """Falls by way and count; ways whose interval of (fall − random's fall) lies above zero are marked with *."""
    counts = list(results[0][part]["random"])
    groups = np.array([result["video"] for result in results])
    print(f"\n| {part} taken away | {' | '.join(map(str, counts))} |\n|---|{'---|' * len(counts)}")
    for way in results[0][part]:
        cells = []
        for count in counts:
            values = np.array([result[part][way][count] for result in results])
            chance = np.array([result[part]["random"][count] for result in results])
            mean, low, high = interval(values, groups)
            star = "*" if way != "random" and interval(values - chance, groups)[1] > 0 else ""
            cells.append(f"{mean:.2f} [{low:.2f}, {high:.2f}]{star}")
        print(f"| {way} | {' | '.join(cells)} |")


def report(results: list[dict[str, Any]]) -> None:
    for title, chosen in (("all", results), ("correct", [result for result in results if result["correct"]])):
        print(f"\n{len(chosen)} answers ({title}), fall of the log-probability in nats, * above random's")
        for part in ("frames", "patches"):
            table(chosen, part)
    told = [result for result in results if "in_shot" in result]
    shots = {"right": [r for r in told if r["correct"]], "wrong": [r for r in told if not r["correct"]]}
    print("\nshare of the weight in the shot that the question is about, %")
    print(f"| | {' | '.join(f'{len(chosen)} {title} answers' for title, chosen in shots.items())} |\n|---|---|---|")
    for way in told[0]["in_shot"]:
        cells = []
        for chosen in shots.values():
            groups = np.array([result["video"] for result in chosen])
            mean, low, high = interval(np.array([100 * result["in_shot"][way] for result in chosen]), groups)
            cells.append(f"{mean:.1f} [{low:.1f}, {high:.1f}]")
        print(f"| {way} | {' | '.join(cells)} |")
    errors = [result["error"] for result in results]
    print(
        f"\nsum of the gains, off by (nats): median {np.median(errors):.3f}, 90% below {np.percentile(errors, 90):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--questions-per-video", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--out", type=Path, help="JSON file for every answer's numbers")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    results = run(arguments)
    report(results)
    print(f"\ntorch {torch.__version__}, {arguments.threads} thread(s), {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
