"""The house keeps its shape: who may import whom, what `linvt` exports, and recipes that parse."""

import dataclasses
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import linvt
from linvt.command import parse
from linvt.extraction.config import ExtractConfig
from linvt.tiny.image_llm_config import ImageLLMTrainConfig
from linvt.tiny.world_config import WorldConfig
from linvt.training.config import TrainConfig

ROOT = Path(__file__).parent.parent

CONFIG_OF_RECIPE: dict[str, type] = {
    "extract-tiny": ExtractConfig,
    "tiny-image-llm": ImageLLMTrainConfig,
    "tiny-image-llm-continued": ImageLLMTrainConfig,
    "tiny-image-llm-finished": ImageLLMTrainConfig,
    "tiny-image-llm-unordered": ImageLLMTrainConfig,
    "tiny-image-llm-asked": ImageLLMTrainConfig,
    "tiny-stage1": TrainConfig,
    "tiny-stage2": TrainConfig,
    "tiny-world": WorldConfig,
}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_contracts_hold() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def test_no_module_of_the_library_brings_ray_in() -> None:
    """Import-linter reads imports; this runs them all, with what they bring in through other packages."""
    loaded = run_python(
        "import importlib, pkgutil, sys\n"
        "import linvt\n"
        "names = [module.name for module in pkgutil.walk_packages(linvt.__path__, 'linvt.')]\n"
        "assert len(names) > 50, names\n"
        "for name in names:\n"
        "    importlib.import_module(name)\n"
        "print('torch' in sys.modules, 'ray' in sys.modules, 'pipelines' in sys.modules)\n"
    )
    assert loaded.split() == ["True", "False", "False"]


def test_importing_linvt_loads_no_torch() -> None:
    assert run_python("import sys, linvt; print('torch' in sys.modules)").strip() == "False"


def test_public_names() -> None:
    assert set(linvt.__all__) == {"LinVT", "LinVTConfig", "VideoLLM", "load_backbone", "read_cache"}
    for name in linvt.__all__:
        assert getattr(linvt, name).__module__.startswith("linvt.")
    with pytest.raises(AttributeError, match="it exports"):
        _ = linvt.VideoLLm


def test_every_recipe_has_its_config() -> None:
    assert {file.stem for file in (ROOT / "jobs/configs").glob("*.toml")} == set(CONFIG_OF_RECIPE)


@pytest.mark.parametrize("name", sorted(CONFIG_OF_RECIPE))
def test_recipe_parses_to_what_it_says(name: str) -> None:
    recipe: dict[str, Any] = tomllib.loads((ROOT / f"jobs/configs/{name}.toml").read_text())
    config_class = CONFIG_OF_RECIPE[name]
    required = [
        field.name
        for field in dataclasses.fields(config_class)
        if field.default is dataclasses.MISSING and field.name not in recipe
    ]
    arguments = [part for name in required for part in (f"--{name.replace('_', '-')}", "given-by-flag")]
    config = parse(config_class, arguments, recipe=recipe)
    for key, value in recipe.items():
        assert getattr(config, key) == (tuple(value) if isinstance(value, list) else value), key


def test_promises_name_tests_that_exist() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", (ROOT / "docs/promises.md").read_text())
    assert len(named) > 30
    missing = [f"{file}::{test}" for file, test in named if not _defines(ROOT / file, test)]
    assert missing == []


def _defines(file: Path, test: str) -> bool:
    return file.is_file() and re.search(rf"^(async )?def {test}\(", file.read_text(), re.MULTILINE) is not None
