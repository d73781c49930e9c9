# flex-rl: every command that people type. `make` alone prints them.
PYTHON ?= python3.11
VENV   ?= .venv
RUN     = $(VENV)/bin/python
MODEL  ?= examples/pretrained/humanoid_skills
IMAGE  ?= flex-rl
SWEEP  ?= examples/half_cheetah_sweep.yaml
TARGET ?= local
DATA   ?= workspace/skills_data
# of a sweep on a cluster: IMAGE=... with its digest, or what `make load-image` (kind) or `make push-image` (gke) brought there last
DIGEST  = $(if $(filter-out flex-rl,$(IMAGE)),$(IMAGE),$(shell cat workspace/.$(TARGET)_image 2>/dev/null))
# what images are built upon: python:TAG@sha256:... pins it to the bit (docker/Dockerfile)
BUILD   = $(addprefix --build-arg BASE=,$(BASE))
# kubectl at the cluster that `make cluster-up` or `make kubeconfig` made, whatever it was used for last
AT_KIND = kubectl --context kind-flex-rl
AT_GKE  = kubectl --context "$$(cat workspace/.gke_context)"
AT      = $(if $(filter gke,$(TARGET)),$(AT_GKE),$(AT_KIND))
OUTPUT  = terraform -chdir=terraform output -raw
KUBECTL = snap install kubectl --classic, or brew install kubectl
ROOM    = 20  # GB that images and a cluster take
GPUS   ?= $(shell command -v nvidia-smi >/dev/null && echo --gpus all)

.DEFAULT_GOAL := help
.PHONY: help train train-dt play collect test check format tensorboard bench sweep status logs fetch report cancel need-name need-kubectl need-docker need-room need-cluster build-dev shell \
        build-runtime cluster-up load-image cluster-down push-image archive need-image need-cloud cloud-plan cloud-up cloud-down kubeconfig clean

help:  ## print this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "make %-13s %s\n", $$1, $$2}'

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

train-dt: $(VENV)/.installed  ## train a Decision Transformer on a dataset (workspace/humanoid_dt; DATA=workspace/skills_data, of make collect)
	$(RUN) train_dt.py --name humanoid_dt --config examples/dt_humanoid.yaml --dataset $(DATA) $(ARGS)

test: $(VENV)/.installed  ## run the tests, as many at a time as there are cores
	$(RUN) -m pytest -n auto --dist worksteal

check: $(VENV)/.installed  ## formatter, linter and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: $(VENV)/.installed  ## format the code, and mend what the linter can
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

tensorboard: $(VENV)/.installed  ## show workspace/ in TensorBoard, http://localhost:6006 (TARGET=kind IMAGE=...: the cluster's)
ifeq ($(TARGET),local)
	$(RUN) -m tensorboard.main --logdir workspace --host 127.0.0.1
else
	@$(MAKE) --no-print-directory need-kubectl
	@$(MAKE) --no-print-directory need-image
	$(AT) apply -f k8s/tensorboard.yaml
	$(AT) -n flex-rl set image deployment/tensorboard tensorboard=$(DIGEST)
	$(AT) -n flex-rl rollout status deployment/tensorboard --timeout=300s
	$(AT) -n flex-rl port-forward service/tensorboard 6006:6006 --address 127.0.0.1
endif

bench: $(VENV)/.installed  ## the speeds of the world and of PPO (docs/RESULTS.md); bench/ has the others
	$(RUN) bench/physics.py
	$(RUN) bench/ppo.py

sweep: $(VENV)/.installed  ## run a sweep (SWEEP=examples/half_cheetah_sweep.yaml TARGET=local ARGS=--plan)
	$(RUN) submit_sweep.py --sweep $(SWEEP) --target $(TARGET) $(if $(filter-out local,$(TARGET)),$(addprefix --image ,$(DIGEST))) $(ARGS)

need-name:
	@test -n "$(NAME)" || { echo "which sweep? make $(MAKECMDGOALS) NAME=half-cheetah-sweep" >&2; exit 2; }

status: need-name $(VENV)/.installed  ## how a sweep stands (NAME=half-cheetah-sweep)
	$(RUN) submit_sweep.py status $(NAME)

logs: need-name $(VENV)/.installed  ## what a trial printed (NAME=half-cheetah-sweep TRIAL=the beginning of its id; ARGS=--follow)
	@test -n "$(TRIAL)" || { echo "which trial? make status NAME=$(NAME) shows their ids; make logs NAME=$(NAME) TRIAL=..." >&2; exit 2; }
	$(RUN) submit_sweep.py logs $(NAME) $(TRIAL) $(ARGS)

report: need-name $(VENV)/.installed  ## compare a sweep's points: a table, a picture, CSV (NAME=half-cheetah-sweep)
	$(RUN) submit_sweep.py report $(NAME) $(ARGS)

cancel: need-name $(VENV)/.installed  ## stop a sweep, here or on its cluster; submitted again it goes on (NAME=half-cheetah-sweep)
	$(RUN) submit_sweep.py cancel $(NAME)

fetch: need-name $(VENV)/.installed  ## bring what a sweep on GKE came to into workspace/ (NAME=half-cheetah-sweep)
	$(RUN) submit_sweep.py fetch $(NAME)

need-image:
	@test -n "$(DIGEST)" || { echo "which image? make load-image (TARGET=kind) or make push-image (TARGET=gke) first, or IMAGE=NAME@sha256:..." >&2; exit 2; }

need-docker:
	@command -v docker >/dev/null || { echo "docker is not installed: https://docs.docker.com/engine/install/" >&2; exit 2; }
	@docker info >/dev/null 2>&1 || { echo "no Docker engine answers; start it: systemctl start docker" >&2; exit 2; }

need-kubectl:
	@command -v kubectl >/dev/null || { echo "kubectl is not installed: $(KUBECTL)" >&2; exit 2; }
	@$(AT) get --raw /version --request-timeout=5s >/dev/null 2>&1 || \
	{ echo "no cluster answers: make cluster-up starts one here, make kubeconfig PROJECT=... STATE=... names GKE's" >&2; exit 2; }

need-cluster:
	@exec >&2; missing=0; \
	command -v docker >/dev/null || { missing=2; echo "docker is not installed: apt install docker.io, or https://docs.docker.com/engine/install/"; }; \
	command -v kind >/dev/null || { missing=2; echo "kind is not installed: go install sigs.k8s.io/kind@latest, or brew install kind"; }; \
	command -v kubectl >/dev/null || { missing=2; echo "kubectl is not installed: $(KUBECTL)"; }; \
	exit $$missing
	@$(MAKE) --no-print-directory need-docker

need-room:
	@free=$$(df --output=avail -BG . | tail -n 1 | tr -dc 0-9); \
	test $$free -ge $(ROOM) || { echo "$$free GB are free here, images and a cluster take $(ROOM): docker system prune makes room" >&2; exit 2; }

build-dev: need-docker  ## build the development image
	docker build --target dev $(BUILD) --tag $(IMAGE):dev --file docker/Dockerfile .

shell: build-dev  ## a shell in the development image, with this folder mounted and your own user
	docker run --rm --interactive --tty --user "$(shell id -u):$(shell id -g)" $(GPUS) --volume "$(CURDIR)":/app $(IMAGE):dev bash

build-runtime: need-docker  ## build the image that clusters run (TORCH_INDEX=URL: torch from there, such as its wheels for CPUs)
	docker build --target runtime $(BUILD) --build-arg COMMIT="$(shell docker/commit.sh)" --build-arg TORCH_INDEX="$(TORCH_INDEX)" --tag $(IMAGE) --file docker/Dockerfile .

cluster-up: need-room need-cluster  ## a Kind cluster on this machine, its workspace being this folder's
	mkdir -p workspace
	kind create cluster --name flex-rl --config k8s/kind_cluster.yaml
	$(AT_KIND) apply -f k8s/namespace.yaml -f k8s/access.yaml -f k8s/workspace_kind.yaml

load-image: need-room need-cluster build-runtime  ## bring the runtime image into the Kind cluster, for make sweep TARGET=kind
	@id=$$(docker image inspect --format '{{.Id}}' $(IMAGE) | cut -c8-31); \
	docker tag $(IMAGE) $(IMAGE):sha256-$$id && kind load docker-image $(IMAGE):sha256-$$id --name flex-rl && \
	echo $(IMAGE):sha256-$$id > workspace/.kind_image && echo "submit with: make sweep TARGET=kind, or --target kind --image $(IMAGE):sha256-$$id"

cluster-down: need-cluster  ## remove the Kind cluster; workspace/ stays
	kind delete cluster --name flex-rl

need-cloud:
	@command -v terraform >/dev/null || { echo "terraform is not installed: https://developer.hashicorp.com/terraform/install" >&2; exit 2; }
	@command -v gcloud >/dev/null || { echo "gcloud is not installed: https://cloud.google.com/sdk/docs/install" >&2; exit 2; }
	@test -n "$(PROJECT)" || { echo "which project? make $(MAKECMDGOALS) PROJECT=my-robots-1 STATE=BUCKET" >&2; exit 2; }
	@test -n "$(STATE)" || { echo "which bucket keeps Terraform's state? make $(MAKECMDGOALS) PROJECT=... STATE=BUCKET" >&2; exit 2; }
	@gcloud auth application-default print-access-token >/dev/null 2>&1 || \
	{ echo "not logged in: gcloud auth login && gcloud auth application-default login" >&2; exit 2; }
	terraform -chdir=terraform init -input=false -backend-config=bucket=$(STATE) -backend-config=prefix=flex-rl

cloud-plan: need-cloud  ## what Terraform would build on Google's cloud (PROJECT=... STATE=BUCKET)
	terraform -chdir=terraform plan -var project=$(PROJECT) $(ARGS)

cloud-up: need-cloud  ## build it: cluster, one machine for its system, pools from zero machines, bucket, registry
	terraform -chdir=terraform apply -var project=$(PROJECT) $(ARGS)

cloud-down: need-cloud  ## take it away again, once the workspace's disk is gone; the bucket stays
	@network=$$($(OUTPUT) network 2>/dev/null || echo flex-rl); \
	disks=$$(gcloud filestore instances list --project $(PROJECT) --filter="networks.network~(^|/)$$network$$" --format='value(name)') || \
	{ echo "whether the workspace's disk is still there cannot be told; mend what gcloud says, and call this again" >&2; exit 2; }; \
	test -z "$$disks" || { echo "the workspace's disk is still there, and costs ($$disks): make archive copies what it holds into the bucket, then kubectl -n flex-rl delete pvc workspace and gcloud filestore instances delete NAME --location ZONE --project $(PROJECT)" >&2; exit 2; }
	terraform -chdir=terraform apply -var project=$(PROJECT) -var deletion_protection=false -target=google_container_cluster.main $(ARGS)
	-terraform -chdir=terraform state rm google_storage_bucket.workspace
	-terraform -chdir=terraform state rm google_storage_bucket_iam_member.train
	terraform -chdir=terraform destroy -var project=$(PROJECT) -var deletion_protection=false $(ARGS)

kubeconfig: need-cloud  ## let kubectl and submit_sweep.py reach that cluster, and set it up for sweeps
	@command -v kubectl >/dev/null || { echo "kubectl is not installed: $(KUBECTL)" >&2; exit 2; }
	@command -v gke-gcloud-auth-plugin >/dev/null || { echo "gke-gcloud-auth-plugin is not installed: gcloud components install gke-gcloud-auth-plugin" >&2; exit 2; }
	gcloud container clusters get-credentials $$(terraform -chdir=terraform output -json cluster | $(PYTHON) -c 'import json, sys; c = json.load(sys.stdin); print(c["name"], "--location", c["location"], "--project", c["project"])')
	@mkdir -p workspace && kubectl config current-context > workspace/.gke_context
	$(AT_GKE) apply -f k8s/namespace.yaml -f k8s/access.yaml
	$(OUTPUT) workspace > workspace/.gke_workspace.yaml && $(AT_GKE) apply -f workspace/.gke_workspace.yaml
	account=$$($(OUTPUT) train_service_account) && \
	$(AT_GKE) -n flex-rl annotate --overwrite serviceaccount flex-rl-train iam.gke.io/gcp-service-account=$$account

push-image: need-cloud build-runtime  ## bring the runtime image into that project's registry, for make sweep TARGET=gke
	@name=$$($(OUTPUT) repository)/flex-rl; tag=sha256-$$(docker image inspect --format '{{.Id}}' $(IMAGE) | cut -c8-31); \
	gcloud auth configure-docker --quiet $${name%%/*} && docker tag $(IMAGE) $$name:$$tag && \
	{ docker manifest inspect $$name:$$tag >/dev/null 2>&1 || docker push $$name:$$tag; } && docker pull --quiet $$name:$$tag >/dev/null && \
	docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' $$name:$$tag | grep "^$$name@" > workspace/.gke_image && \
	echo "submit with: make sweep TARGET=gke, or --target gke --image $$(cat workspace/.gke_image)"

archive: TARGET = gke
archive: need-cloud  ## copy the cluster's workspace into the bucket, now and every night (before its disk is deleted for cloud-down)
	@$(MAKE) --no-print-directory TARGET=gke need-image need-kubectl
	$(OUTPUT) archive > workspace/.gke_archive.yaml && $(AT_GKE) apply -f workspace/.gke_archive.yaml
	$(AT_GKE) -n flex-rl set image cronjob/archive archive=$(DIGEST)
	$(AT_GKE) -n flex-rl delete job archive-now --ignore-not-found
	$(AT_GKE) -n flex-rl create job archive-now --from=cronjob/archive
	@while sleep 5; do case "$$($(AT_GKE) -n flex-rl get job archive-now -o jsonpath='{.status.conditions[?(@.status=="True")].type}')" in \
	*Complete*) $(AT_GKE) -n flex-rl logs job/archive-now --container archive; exit 0;; \
	*Failed*) $(AT_GKE) -n flex-rl logs job/archive-now --container archive; echo "the archive is not whole; make archive tries again" >&2; exit 1;; esac; done

clean:  ## remove the environment and caches, never workspace/
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
