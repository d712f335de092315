# Everything runs from the virtual environment in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
# A folder with labelled videos, for the benchmarks that need real footage.
VIDEOS ?= $(if $(LINVT_SHARED),$(LINVT_SHARED)/videos)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench reproduce clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv and install requirements.lock into it (quick the second time)

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit(f"needs Python 3.11 or 3.12, found {v[0]}.{v[1]}; try: rm -r $(VENV); make setup PYTHON=python3.11")'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## the whole job on a tiny image-LLM: extract, train, evaluate, serve one question
	@$(BIN)/python jobs/demo.py $(ARGS)

test: setup  ## run the tests; ARGS="tests/shards -x" runs some of them
	$(BIN)/python -m pytest $(ARGS)

check: setup  ## lint, formatting, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: setup  ## run the benchmarks; VIDEOS=DIR adds those that need labelled real footage
	@set -e; for script in benchmarks/*.py; do \
	    case $$script in *real_footage.py) directory="$(VIDEOS)";; *) directory=;; esac; \
	    case $$script/$$directory in *real_footage.py/) echo "== $$script: skipped, needs VIDEOS=DIR"; continue;; esac; \
	    echo "== $$script $$directory"; $(BIN)/python $$script $$directory; \
	done

# Steps go on from what is in runs/, but for the image-LLM's five, which start over; another image-LLM needs an empty runs/.
reproduce: setup  ## make the committed weights again, in place (hours); results in runs/
	$(BIN)/python jobs/train_image_llm.py --config jobs/configs/tiny-image-llm.toml
	$(BIN)/python jobs/train_image_llm.py --config jobs/configs/tiny-image-llm-continued.toml
	$(BIN)/python jobs/train_image_llm.py --config jobs/configs/tiny-image-llm-finished.toml
	$(BIN)/python jobs/train_image_llm.py --config jobs/configs/tiny-image-llm-unordered.toml
	$(BIN)/python jobs/train_image_llm.py --config jobs/configs/tiny-image-llm-asked.toml
	$(BIN)/python jobs/make_world.py --config jobs/configs/tiny-world.toml
	$(BIN)/python jobs/extract_features.py --config jobs/configs/extract-tiny.toml --videos runs/world --detector none \
	    --out runs/cache --on-existing resume
	$(BIN)/python jobs/train.py --config jobs/configs/tiny-stage1.toml --cache runs/cache \
	    --annotations runs/world/train_videos.jsonl --out runs/stage1 --num-workers 2 --on-existing resume
	$(BIN)/python jobs/train.py --config jobs/configs/tiny-stage2.toml --cache runs/cache \
	    --annotations runs/world/train_videos.jsonl runs/world/train_images.jsonl --out runs/stage2 \
	    --eval-annotations runs/world/val_videos.jsonl --init-from runs/stage1/model \
	    --num-workers 2 --on-existing resume
	$(BIN)/python jobs/evaluate.py --model runs/stage2/model --cache runs/cache --answers choices \
	    --data runs/world/test_videos.jsonl runs/world/test_images.jsonl --out runs/evaluation --on-existing resume
	cp -r runs/stage2/model/adapter runs/stage2/model/*.safetensors runs/stage2/model/*.json runs/stage2/loss.png \
	    linvt/tiny/weights/video_llm/

clean:  ## remove what the demo and the tools left; keeps .venv and runs/
	rm -rf demo .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
