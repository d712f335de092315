"""A trained model's folder made ready to be given away.

    OUT/config.json, linvt.safetensors, generation_config.json, README.md    as training wrote them
        adapter/       the LoRA adapter, which PEFT alone can load, too
        image_llm/     with --merge-lora, instead of adapter/: the image-LLM with the adapter merged in

What is inside is named by relative paths, so the folder can be moved, or pushed to a hub as it is.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

from linvt.export.config import ExportConfig
from linvt.export.merge import merge_into_image_llm
from linvt.model_card import CARD_FILE, model_card
from linvt.video_llm import image_llm_of, read_model_config

logger = logging.getLogger(__name__)

IMAGE_LLM_FOLDER = "image_llm"
_MERGED = """
## Merged

The adapter is merged into `image_llm/`, a copy of the image-LLM. Its answers to images are the tuned model's; the
image-LLM as it was is `{image_llm}`.
"""


def export(config: ExportConfig) -> dict[str, Any]:
    """Write `config.out` and say what it holds. It appears whole: written under another name, then renamed.

    Raises ValueError for a folder that is no trained model, an --out that is taken, and weights that cannot be merged.
    """
    model, out = Path(config.model), Path(config.out)
    model_config = read_model_config(model)
    if model_config["backbone"].startswith("./"):
        raise ValueError(f"--model {model} is a merged export, with its image-LLM inside; export what it was made of")
    if config.merge_lora and not model_config["adapter"]:
        raise ValueError(f"--merge-lora: {model} has no adapter (stage 1 trains none); leave the flag out")
    image_llm = config.backbone or image_llm_of(model, model_config)
    source = {
        "sha256": _hash_of(model),
        "merged": config.merge_lora,
        "dtype": config.dtype if config.merge_lora else None,
    }
    if _is_there(config, source):
        return _outcome(out, source)

    unfinished = out.with_name(f"{out.name}.{uuid4().hex}.tmp")
    unfinished.mkdir(parents=True)
    try:
        for name in ("linvt.safetensors", "generation_config.json"):
            if (model / name).is_file():
                shutil.copyfile(model / name, unfinished / name)
        card = (model / CARD_FILE).read_text() if (model / CARD_FILE).is_file() else model_card(model_config)
        if config.merge_lora:
            logger.info("merging the adapter into %s", image_llm)
            merge_into_image_llm(image_llm, model / "adapter", unfinished / IMAGE_LLM_FOLDER, dtype=config.dtype)
            card += _MERGED.format(image_llm=image_llm)
            model_config |= {"adapter": False, "backbone": f"./{IMAGE_LLM_FOLDER}"}
        else:
            model_config["backbone"] = image_llm
            if model_config["adapter"]:
                shutil.copytree(model / "adapter", unfinished / "adapter")
        (unfinished / CARD_FILE).write_text(card)
        (unfinished / "config.json").write_text(json.dumps(model_config | {"exported_from": source}, indent=1) + "\n")
        if out.exists():
            shutil.rmtree(out)
        unfinished.rename(out)
    finally:
        if unfinished.exists():
            shutil.rmtree(unfinished)
    if not config.merge_lora and Path(image_llm).is_dir():
        logger.warning("the export names its image-LLM by a path of this machine: %s", image_llm)
    return _outcome(out, source)


def _is_there(config: ExportConfig, source: dict[str, Any]) -> bool:
    """Whether --out holds this very export. Raises ValueError where it holds anything that must not be replaced."""
    out = Path(config.out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    file = out / "config.json"
    found = json.loads(file.read_text()).get("exported_from") if file.is_file() else None
    if found is None:
        raise ValueError(f"--out {out} is there and is no export; choose another folder")
    if config.on_existing == "overwrite":
        return False
    if config.on_existing == "resume" and found == source:
        return True
    other = "an export of other weights or settings" if found != source else "this export"
    raise ValueError(f"--out {out} already holds {other}; choose another folder, or --on-existing overwrite")


def _hash_of(model: Path) -> str:
    """sha256 hex over the weights of a model's folder."""
    digest = hashlib.sha256()
    for name in ("linvt.safetensors", "adapter/adapter_model.safetensors"):
        if (model / name).is_file():
            with (model / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _outcome(out: Path, source: dict[str, Any]) -> dict[str, Any]:
    size_bytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {"model": str(out), "merged": source["merged"], "bytes": size_bytes}
