"""How fast machines are: constants of an estimate, each with where it comes from. Imports no torch."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

# Dense bfloat16, from NVIDIA's data sheets (which print twice as much "with sparsity").
GPU_PEAK_FLOPS_PER_S = {"h200": 989e12, "h100": 989e12, "a100": 312e12, "l40s": 362e12, "l4": 121e12}


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """Of one core and of one GPU (or of what stood in for it when they were measured)."""

    decode_seconds_per_video: float
    """Of a core: opening, hashing, handing over."""
    decode_seconds_per_megapixel: float
    """Of a core: decoding and scaling."""
    detector_frames_per_s: float
    """Of a core."""
    encode_flops_per_s: float
    stage1_flops_per_s: float
    """By the count of `linvt.training.flops`, everything else of a step in it."""
    stage2_flops_per_s: float
    sources: dict[str, str]
    """Where each comes from, by its name."""

    def __post_init__(self) -> None:
        names = {field.name for field in dataclasses.fields(self)} - {"sources"}
        if set(self.sources) != names:
            raise ValueError(f"constants {sorted(names)} each have a source, got {sorted(self.sources)}")
        for name in names:
            if not getattr(self, name) >= 0:
                raise ValueError(f"constant {name} must not be negative, got {getattr(self, name)}")


def assumed_constants(gpu: str) -> Constants:
    """For who cannot calibrate: see each one's source, and mistrust those that are assumed."""
    peak = GPU_PEAK_FLOPS_PER_S[gpu]
    here = "measured: CPU seconds of 14 real clips, 320×180 to 1280×720, on one core of an x86 server"
    return Constants(
        decode_seconds_per_video=0.146,
        decode_seconds_per_megapixel=0.0035,
        detector_frames_per_s=169.0,
        encode_flops_per_s=0.4 * peak,
        stage1_flops_per_s=0.35 * peak,
        stage2_flops_per_s=0.35 * peak,
        sources={
            "decode_seconds_per_video": here,
            "decode_seconds_per_megapixel": here,
            "detector_frames_per_s": "measured on one core, TransNetV2 in float32 (docs/LOG.md); 401 in bfloat16",
            "encode_flops_per_s": f"assumed: 40% of the {gpu}'s data sheet; --calibrate on one",
            "stage1_flops_per_s": f"assumed: 35% of the {gpu}'s data sheet; --calibrate on one",
            "stage2_flops_per_s": f"assumed: 35% of the {gpu}'s data sheet; --calibrate on one",
        },
    )


def read_constants(path: str) -> Constants:
    """Raises ValueError for a file that `write_constants` did not write."""
    try:
        return Constants(**json.loads(Path(path).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"--constants {path}: {error}; expected what jobs/estimate.py --calibrate --write-constants FILE writes"
        ) from error


def write_constants(path: str, constants: Constants) -> None:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.tmp")
    unfinished.write_text(json.dumps(dataclasses.asdict(constants), indent=1) + "\n")
    unfinished.replace(file)
