import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModel

from linvt.estimation.arithmetic import VideoTokenizerSize, estimate, visit_flops
from linvt.estimation.config import EstimateConfig
from linvt.estimation.constants import assumed_constants, read_constants, write_constants
from linvt.estimation.corpus import corpus_of
from linvt.estimation.estimating import make_estimate, run_estimate, video_tokenizer_size
from linvt.estimation.image_llms import IMAGE_LLMS, ImageLLM
from linvt.shards.layout import CacheDtype
from linvt.training.batches import collate
from linvt.training.flops import FlopCounter
from linvt.training.loop import load_visits
from linvt.training.model import build_model
from tests.media import write_video
from tests.shards.cache_builder import pending_sample, write_one_shard
from tests.training.inputs import small_config, write_inputs

CONFIG = EstimateConfig(videos="1000", backbone="qwen2-vl-2b")


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_shards_are_as_large_as_estimated(tmp_path, dtype: CacheDtype):
    from linvt.shards.storage import open_storage

    samples = [pending_sample(f"{slot}.mp4", torch.randn(16, 64, 128), slot=slot, dtype=dtype) for slot in range(8)]
    record = write_one_shard(open_storage(str(tmp_path)), 0, samples)
    image_llm = replace(IMAGE_LLMS["qwen2-vl-2b"], tokens_per_frame=64, hidden_size=128)
    config = replace(CONFIG, num_frames=16, cache_dtype=dtype)
    size = VideoTokenizerSize(refiner=0, aggregator=0, video_tokens=112)
    found = estimate(config, corpus_of(config), image_llm, size, assumed_constants("h100"))
    assert found.sample_megabytes * 1e6 * 8 == pytest.approx(record.tar_size_bytes, rel=0.03)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_visit_has_the_flops_that_training_counts(tmp_path, stage):
    inputs = write_inputs(tmp_path / "inputs", num_videos=4)
    train_config = small_config(inputs, tmp_path / "out", stage=stage, turns_per_visit=1)
    model = build_model(train_config, torch.device("cpu"))
    counter = FlopCounter(model)
    visit = load_visits(train_config).load(0)
    batch = collate([visit], model.backbone)
    answer_tokens = sum(label >= 0 for sequence in batch.sequences for label in sequence.labels)
    text = sum(len(sequence.before) + len(sequence.after) for sequence in batch.sequences)
    measured = counter.flops(batch, answer_tokens=answer_tokens)
    image_llm = ImageLLM(
        name="",
        published_as="",
        tokens_per_frame=batch.tokens.shape[2],
        hidden_size=batch.tokens.shape[3],
        frame_flops=1.0,
        llm_parameters=counter.llm,
        head_parameters=counter.head,
    )
    size = VideoTokenizerSize(
        refiner=counter.refiner, aggregator=counter.aggregator, video_tokens=counter.num_video_tokens or 0
    )
    config = replace(CONFIG, text_tokens=text, answer_tokens=answer_tokens, lora_rank=2)
    told = visit_flops(config, image_llm, size, kept=len(visit.video.tokens), stage=stage)
    caption = int(batch.caption_mask.sum()) if stage == 1 else 0
    told += 2 * counter.llm * (caption - (config.answer_tokens if stage == 1 else 0))
    if stage == 2:
        told += 6 * (counter.lora - image_llm.lora_parameters(2)) * counter.sequence_tokens(batch)
    assert told == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "model_type", "fields"),
    [
        ("qwen2-vl-2b", "qwen2", {"intermediate_size": 8960, "num_hidden_layers": 28, "num_key_value_heads": 2}),
        ("molmo-7b-d", "qwen2", {"intermediate_size": 18944, "num_hidden_layers": 28, "num_key_value_heads": 4}),
        ("blip-3", "phi3", {"intermediate_size": 8192, "num_hidden_layers": 32, "pad_token_id": 0}),
        ("mipha-1.6b", "phi", {"intermediate_size": 8192, "num_hidden_layers": 24}),
    ],
)
def test_sizes_of_llms_are_those_of_transformers_modules(name, model_type, fields):
    heads = {"qwen2-vl-2b": 12, "molmo-7b-d": 28, "blip-3": 32, "mipha-1.6b": 32}[name]
    hidden_size = IMAGE_LLMS[name].hidden_size
    config = AutoConfig.for_model(
        model_type, hidden_size=hidden_size, num_attention_heads=heads, vocab_size=1000, **fields
    )
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    counted = sum(parameter.numel() for parameter in model.parameters()) - 1000 * hidden_size
    assert IMAGE_LLMS[name].llm_parameters == pytest.approx(counted, rel=0.002)


def test_siglip_takes_as_much_as_its_modules():
    from torch.utils.flop_counter import FlopCounterMode
    from transformers.models.siglip import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=2,
        num_attention_heads=16,
        image_size=378,
        patch_size=14,
    )
    config._attn_implementation = "eager"
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        SiglipVisionModel(config)(torch.zeros(1, 3, 378, 378))
    from linvt.estimation.image_llms import Blocks

    blocks = Blocks(layers=2, width=1152, mlp_width=4304, mlp_matrices=2)
    # The patch embedding and the pooling head, which no image-LLM uses, are a layer's work at most.
    assert blocks.flops(27 * 27) == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_linvt_is_counted_without_being_made():
    size = video_tokenizer_size(2048)
    assert (size.refiner + size.aggregator, size.video_tokens) == (277_339_012, 112)


@pytest.mark.parametrize("flags", [{}, {"uncached_shots": True}, {"cache_dtype": "int8", "egress_gb_price": 0.001}])
def test_at_the_break_even_both_ways_cost_the_same(flags):
    config = replace(CONFIG, num_frames=16, stage1_epochs=0.0, **flags)
    epochs = make_estimate(config)[0].break_even_epochs
    assert epochs is not None
    found = make_estimate(replace(config, stage2_epochs=epochs))[0]
    assert found.cached.cost == pytest.approx(found.uncached.cost)
    assert "caching wins" in make_estimate(replace(config, stage2_epochs=2 * epochs))[0].verdict
    assert "LOSES here" in make_estimate(replace(config, stage2_epochs=epochs / 2))[0].verdict


def test_it_says_so_where_a_cache_never_pays():
    """Storage that is read more slowly than the frames are encoded."""
    found = make_estimate(replace(CONFIG, read_megabytes_per_s=20.0))[0]
    assert found.break_even_epochs is None
    assert "LOSES at any number" in found.verdict


def test_a_corpus_is_looked_into(tmp_path):
    for i, shots in enumerate([(12, 12), (24, 24, 24)]):
        write_video(tmp_path / f"{i}.mp4", shot_lengths=shots, size=(96, 64), fps=12)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    corpus = corpus_of(replace(CONFIG, videos=str(tmp_path)))
    assert (corpus.videos, corpus.looked_into, corpus.frames) == (3, 2, 48)
    assert corpus.seconds == pytest.approx(4.0, rel=0.05)
    assert corpus.megapixels == pytest.approx(96 * 64 / 1e6)


def test_what_cannot_be_estimated_is_explained(tmp_path):
    with pytest.raises(ValueError, match="--calibrate, which loads it here, or one of aquila-vl-2b"):
        make_estimate(replace(CONFIG, backbone="ORG/NEW"))
    with pytest.raises(ValueError, match="at least one video"):
        make_estimate(replace(CONFIG, videos="0"))
    (tmp_path / "constants.json").write_text("{}")
    with pytest.raises(ValueError, match="--write-constants"):
        make_estimate(replace(CONFIG, constants=str(tmp_path / "constants.json")))
    with pytest.raises(ValueError, match="includes --answer-tokens"):
        replace(CONFIG, text_tokens=10, answer_tokens=11)


def test_constants_go_to_another_machine_in_a_file(tmp_path):
    file = str(tmp_path / "new/constants.json")
    write_constants(file, assumed_constants("l4"))
    assert read_constants(file) == assumed_constants("l4")
    assert make_estimate(replace(CONFIG, constants=file))[3] == assumed_constants("l4")


@pytest.mark.slow
def test_constants_are_measured_on_this_machine(tmp_path, capsys):
    file = tmp_path / "constants.json"
    config = replace(
        CONFIG,
        backbone="tiny",
        num_frames=4,
        encode_batch_size=4,
        width=96,
        height=64,
        answer_tokens=5,
        calibrate=True,
        write_constants=str(file),
    )
    outcome = run_estimate(config)
    assert json.loads(json.dumps(outcome))["constants"] == json.loads(file.read_text())
    assert all(
        value > 0 for name, value in outcome["constants"].items() if name not in ("sources", "decode_seconds_per_video")
    )
    assert "measured on" in outcome["constants"]["sources"]["stage2_flops_per_s"]
    assert "| **with the cache** |" in capsys.readouterr().out
