"""Export: a trained model's folder, ready to be given away, with LoRA merged into the image-LLM on request."""

from typing import Any

from linvt.command import run
from linvt.export.config import ExportConfig


def main(config: ExportConfig) -> dict[str, Any]:
    from linvt.export.export import export

    return export(config)


if __name__ == "__main__":
    run(ExportConfig, main, description="Make a trained model's folder ready to be given away; merge LoRA on request.")
