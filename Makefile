# flex-rl: every command that people type. `make` alone prints them.
PYTHON ?= python3.11
VENV   ?= .venv
RUN     = $(VENV)/bin/python
MODEL  ?= examples/pretrained/humanoid_skills
IMAGE  ?= flex-rl

.DEFAULT_GOAL := help
.PHONY: help train play collect test check format tensorboard bench build-dev shell clean

help:  ## print this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "make %-12s %s\n", $$1, $$2}'

$(VENV)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@touch $@

train: $(VENV)/.installed  ## train the humanoid to walk (workspace/humanoid_walk_forward; ARGS=--resume to go on)
	$(RUN) train.py --name humanoid_walk_forward --config examples/humanoid_walk_forward.yaml $(ARGS)

play: $(VENV)/.installed  ## watch the shipped skills: a table, and play.mp4 (MODEL=workspace/NAME/best for yours)
	$(RUN) play.py --model $(MODEL) --episodes 8 --video play.mp4

collect: $(VENV)/.installed  ## 200,000 steps of the shipped skills as a dataset (workspace/skills_data; ARGS=... for more)
	$(RUN) collect.py --name skills_data --model $(MODEL) $(ARGS)

test: $(VENV)/.installed  ## run the tests, as many at a time as there are cores
	$(RUN) -m pytest -n auto --dist worksteal

check: $(VENV)/.installed  ## formatter, linter and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: $(VENV)/.installed  ## format the code
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

tensorboard: $(VENV)/.installed  ## show workspace/ in TensorBoard on this machine (http://localhost:6006)
	$(RUN) -m tensorboard.main --logdir workspace --host 127.0.0.1

bench: $(VENV)/.installed  ## the figures of docs/RESULTS.md that take minutes, not hours
	$(RUN) bench/physics.py
	$(RUN) bench/ppo.py

build-dev:  ## build the development image
	@command -v docker >/dev/null || { echo "build-dev: docker is not installed; see https://docs.docker.com/engine/install/" >&2; exit 2; }
	@docker info >/dev/null 2>&1 || { echo "build-dev: no Docker engine answers; start it (systemctl start docker)" >&2; exit 2; }
	@test -f docker/Dockerfile || { echo "build-dev: docker/Dockerfile is not there yet; the images come with a later release" >&2; exit 2; }
	docker build --target dev --tag $(IMAGE):dev --file docker/Dockerfile .

shell: build-dev  ## a shell in the development image, with this folder mounted
	docker run --rm --interactive --tty --volume "$(CURDIR)":/app $(IMAGE):dev bash

clean:  ## remove the environment and caches, never workspace/
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
