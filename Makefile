# GNU make and bash. `make help` lists the targets, docs/options.md the options of the server (CONF).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

# HOST, PORT: address of the server. STUDIES: a folder of scans or a DICOMweb URL.
HOST ?= 127.0.0.1
PORT ?= 8000
ifndef STUDIES
STUDIES := sample-data/build/studies
SAMPLE_DATA := sample-data
endif
# ORTHANC_PORT: HTTP port of the Orthanc of make ohif (Debian's own service has 8042). YES=1: install
# Orthanc without asking.
ORTHANC_PORT ?= 8043
YES ?=
# CONF: options of the app, as in make serve CONF="labels liver,spleen weights /data/fastsam3d.pth"
CONF ?=
# DATA: labelled scans for make accuracy. ACCURACY: further options of benchmarks/accuracy.py.
DATA ?=
ACCURACY ?=
# PYTHON: interpreter for a new .venv (default: the first suitable one). PYTEST_ARGS: options of pytest.
PYTHON ?=
PYTEST_ARGS ?=
# CHAOS: program and options of make chaos (tests/chaos/README.md).
CHAOS ?= --help

# VIEWER_CACHE: folder for the viewer (default: the user's cache folder).
VIEWER_CACHE ?=
export FASTSAM3D_VIEWER_CACHE := $(VIEWER_CACHE)

# sam2 (a requirement of MONAI Label) would compile a CUDA kernel for minutes; nothing here uses it.
export SAM2_BUILD_CUDA ?= 0

CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
FAST_TESTS := not slow and not gpu$(if $(CHROMIUM),, and not browser)
ALL_TESTS := $(if $(CHROMIUM),,not browser)

# $(call pairs,a 1 b 2) -> --conf a 1 --conf b 2
pairs = $(if $(1),--conf '$(word 1,$(1))' '$(word 2,$(1))' $(call pairs,$(wordlist 3,$(words $(1)),$(1))))

.PHONY: help serve ohif benchmark test test-all lint typecheck sample-data install install-dev clean
.PHONY: accuracy chaos weights check-data image secrets lock check-updates
.PHONY: viewer try-viewer check-conf check-port check-studies check-orthanc

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
	    while IFS='|' read -r target text; do printf '  make %-12s %s\n' "$$target" "$$text"; done

# --- server ---------------------------------------------------------------------------------------

URL := http://$(patsubst 0.0.0.0,127.0.0.1,$(HOST)):$(PORT)

START_SERVER = env PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python -m monailabel.main start_server \
    --app apps/fastsam3d --host '$(HOST)' --port '$(PORT)' $(call pairs,$(CONF))

define OPEN_HINT

MONAI Label starts at $(URL) (ready after about 10 s; Ctrl-C stops it).

  3D Slicer   install the extension MONAILabel, open its module MONAI Label,
              enter $(URL) as the server address and connect
  Browser     $(URL)/viewer/ lists the studies; open one with FastSAM3D and press on an organ
  API         $(URL)/docs
  Stock OHIF  $(URL)/ohif/ needs a DICOMweb server: make serve STUDIES=http://...
              (make ohif starts one with the sample data)

endef

serve: check-conf check-port check-studies install try-viewer $(SAMPLE_DATA) ## set up what is missing and start the server (STUDIES, HOST, PORT, CONF)
	$(info $(OPEN_HINT))
	.venv/bin/python tools/announce.py '$(URL)' & $(START_SERVER) --studies '$(STUDIES)'

# The DICOM cache lies in sample-data/build, so that make clean removes it too.
ohif: check-conf check-port check-orthanc install try-viewer ## start OHIF on the sample DICOM series, with a local Orthanc (HOST, PORT, CONF, YES=1)
	.venv/bin/python sample-data/prepare.py --no-real
	MONAI_LABEL_DICOMWEB_CACHE_PATH='$(CURDIR)/sample-data/build/dicom-cache' \
	.venv/bin/python tools/orthanc.py --port '$(ORTHANC_PORT)' --viewer '$(URL)' \
	    --storage sample-data/build/orthanc --dicom sample-data/build/dicom -- \
	    $(START_SERVER) --studies 'http://127.0.0.1:$(ORTHANC_PORT)/dicom-web'

viewer: install ## fetch the viewer of /viewer/ once, 49 MB (VIEWER_CACHE: another folder for it)
	.venv/bin/python tools/fetch_viewer.py

# Without a network the server starts all the same, with the stock viewer.
try-viewer: install
	@.venv/bin/python tools/fetch_viewer.py \
	    || echo 'The server starts without /viewer/; OHIF as MONAI Label has it is at /ohif/' >&2

# These checks run before the installation, which takes minutes. They need only the shell.
check-conf:
	@if (( $(words $(CONF)) % 2 )); then \
	    echo 'CONF="$(CONF)": expected pairs, as in CONF="name value name value"' >&2; exit 1; fi

check-port:
	@if (exec 3<>'/dev/tcp/$(HOST)/$(PORT)') 2>/dev/null; then \
	    echo 'Port $(PORT) on $(HOST) is taken: stop what listens there, or use make serve PORT=8001' >&2; \
	    exit 1; fi

check-studies:
ifndef SAMPLE_DATA
	@case '$(STUDIES)' in http://*|https://*) ;; *) [[ -d '$(STUDIES)' ]] || { \
	    echo 'STUDIES=$(STUDIES): neither a folder nor an http(s) address' >&2; exit 1; } ;; esac
endif

# --- containers -----------------------------------------------------------------------------------

# CONTAINER: podman, docker or buildah. IMAGE_ARGS: --build-arg TORCH_INDEX= for torch with CUDA.
CONTAINER ?= $(notdir $(firstword $(shell command -v docker podman buildah)))
IMAGE_ARGS ?=
SITE ?= localhost

image: ## build the image fastsam3d-server (CONTAINER, IMAGE_ARGS)
	@command -v '$(CONTAINER)' >/dev/null || { echo 'CONTAINER=$(CONTAINER): give docker, podman or' \
	    'buildah; on Debian and Ubuntu, apt install podman' >&2; exit 1; }
	$(CONTAINER) build $(if $(findstring docker,$(CONTAINER)),,--format docker) $(IMAGE_ARGS) \
	    -f Containerfile --target server -t fastsam3d-server .

secrets: ## make the key and a certificate for compose.yaml, unless they are there (SITE: host name)
	@deploy/make-secrets.sh '$(SITE)'

# --- DICOM server ---------------------------------------------------------------------------------

ORTHANC_PACKAGES := orthanc orthanc-dicomweb

# It asks before it installs packages. Without a terminal or with YES=1 it installs them at once.
check-orthanc:
	@if PATH="$$PATH:/usr/sbin" command -v Orthanc >/dev/null \
	    && [[ -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ]]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then \
	    echo 'Orthanc or its DICOMweb plugin is missing, and there is no apt-get to install it with' >&2; \
	    exit 1; fi; \
	echo 'Orthanc, the DICOM server for the sample data, is missing: $(ORTHANC_PACKAGES) of this system'; \
	if [[ '$(YES)' != 1 && -t 0 ]]; then \
	    read -rp 'Install these packages with apt-get? [y/N] ' answer; \
	    [[ "$$answer" == [yY]* ]] || exit 1; \
	else echo 'Installing these packages with apt-get'; fi; \
	as_root=(); \
	if (( EUID )); then as_root=(sudo); [[ -t 0 ]] || as_root+=(-n); fi; \
	"$${as_root[@]}" apt-get update -qq; \
	"$${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends $(ORTHANC_PACKAGES)

sample-data: install ## build the sample studies in sample-data/build
	.venv/bin/python sample-data/prepare.py

# --- benchmarks -----------------------------------------------------------------------------------

# REPORT: folder of the results. ROWS: networks of efficiency.py (default: all). SHAPE: scan of
# click_latency.py, as in make benchmark REPORT=/tmp/report ROWS=sam_med3d,fastsam3d
REPORT ?= benchmark-report
ROWS ?=
SHAPE ?= 512,512,300

benchmark: .venv/.installed-benchmarks ## measure the speed of networks and clicks on this machine (REPORT, ROWS, SHAPE): JSON, Markdown, plots
	mkdir -p '$(REPORT)'
	.venv/bin/python benchmarks/efficiency.py $(if $(ROWS),--rows '$(ROWS)') --table4 \
	    --json '$(REPORT)/efficiency.json' --markdown '$(REPORT)/efficiency.md' --plot '$(REPORT)/growth.png'
	.venv/bin/python benchmarks/click_latency.py --shape '$(SHAPE)' --json '$(REPORT)/click_latency.json' \
	    --markdown '$(REPORT)/click_latency.md' --plot '$(REPORT)/click_latency.png'

# --- checks ---------------------------------------------------------------------------------------

test: install-dev try-viewer ## run the tests, without the slow ones (PYTEST_ARGS)
	.venv/bin/python -m pytest -m '$(FAST_TESTS)' $(PYTEST_ARGS)

test-all: install-dev try-viewer ## run all tests, the slow ones included (PYTEST_ARGS)
	.venv/bin/python -m pytest -m '$(ALL_TESTS)' $(PYTEST_ARGS)

chaos: install-dev ## run a program of tests/chaos for long (CHAOS="kills --number 50 --seed 1")
	PYTHONPATH=tests:tests/trainers:apps/fastsam3d:sample-data:tools .venv/bin/python -m chaos $(CHAOS)

lint: install-dev ## check style and formatting with ruff
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

typecheck: install-dev ## check the types of app, benchmarks and training with mypy (strict)
	.venv/bin/mypy

clean: ## remove caches, logs and the sample data with the labels saved there (keeps .venv)
	rm -rf sample-data/build apps/fastsam3d/logs test-artifacts benchmark-report
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find apps sample-data tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- accuracy -------------------------------------------------------------------------------------

accuracy: check-data install-dev ## measure Dice after simulated clicks on labelled scans (DATA, ACCURACY)
	.venv/bin/python benchmarks/accuracy.py --data '$(DATA)' --json accuracy-report/accuracy.json \
	    --markdown accuracy-report/accuracy.md --pictures accuracy-report $(ACCURACY)
	@echo 'Tables and pictures: accuracy-report'

check-data:
	@[[ -n '$(DATA)' && -e '$(DATA)' ]] || { echo 'DATA=$(DATA): give a folder of labelled scans, as in' \
	    'make accuracy DATA=/data/Dataset042_Liver' >&2; exit 1; }

# --- default weights ------------------------------------------------------------------------------

# MINUTES: duration of the teacher's pretraining, a quarter for its encoder alone. START: weights that the
# pretraining goes on with, as in START=apps/fastsam3d/weights/sam_med3d_default.safetensors. DEVICE: of
# the pretraining, with ROIS per step and WORKERS that crop them, as in DEVICE=cuda ROIS=8 WORKERS=16.
# WEIGHTS_BUILD: output folder. TEACHER: weights of an existing teacher, which skip the pretraining.
# ATTENTION: operator of the student, sparse or dense.
MINUTES ?= 600
START ?=
DEVICE ?= cpu
ROIS ?= 0
WORKERS ?= 1
WEIGHTS_BUILD ?= weights-build
TEACHER ?=
ATTENTION ?= sparse
TEACHER_FILE = $(abspath $(or $(TEACHER),$(WEIGHTS_BUILD)/teacher/weights.safetensors))
# 200 epochs of stage 1 and 2 of stage 2. Override it for a shorter training.
DISTILLATION := --start-from teacher --max-epochs 202 --stage1-fraction 0.99 --iterations-per-epoch 5 \
    --train-batch-size 12 --rois 720 --val-rois 16 --val-interval 202 --val-split 0.06 --lr-stage2 2e-5

weights: check-data install-dev ## rebuild the default weights from DATA, teacher and student, in WEIGHTS_BUILD (MINUTES, TEACHER)
	$(if $(TEACHER),,.venv/bin/python -m training.pretrain --data '$(DATA)' --out '$(WEIGHTS_BUILD)/teacher' \
	    $(if $(START),--start '$(START)') --device '$(DEVICE)' --rois '$(ROIS)' --workers '$(WORKERS)' \
	    --cell-minutes $$(($(MINUTES) / 4)) --minutes $$(($(MINUTES) - $(MINUTES) / 4)))
	.venv/bin/python -m training.student --teacher '$(TEACHER_FILE)' --attention '$(ATTENTION)' \
	    --out '$(WEIGHTS_BUILD)/student.safetensors'
	.venv/bin/python -m training.painted_studies --data '$(DATA)' --out '$(WEIGHTS_BUILD)/studies'
	.venv/bin/python apps/fastsam3d/train.py --studies '$(WEIGHTS_BUILD)/studies' $(DISTILLATION) \
	    --conf weights '$(abspath $(WEIGHTS_BUILD))/student.safetensors' \
	    --conf teacher_weights '$(TEACHER_FILE)' \
	    --conf model_dir '$(abspath $(WEIGHTS_BUILD))/model'
	@echo 'The student: $(WEIGHTS_BUILD)/model/fastsam3d/published; measure and publish both: CONTRIBUTING.md'

# --- environment ----------------------------------------------------------------------------------

PIP_INSTALL := .venv/bin/python -m pip install --disable-pip-version-check --no-input -c constraints.txt
# $(call logged,TITLE,COMMAND,STEPS): run a command that uses pip, and print only its progress: downloads
# and STEPS. The log has the full output; its end is printed on failure.
define logged
@echo '$(strip $(1)) (log: .venv/install.log)'
@$(2) 2>&1 | tee -a .venv/install.log \
    | { grep --line-buffered -oE '^ *((Downloading|Using cached) .* [MG]B\)$(3))' || true; } \
    || { echo 'The installation did not end:' >&2; tail -n 15 .venv/install.log >&2; exit 1; }
endef
STEPS := |Building wheel[^(]*|Installing collected packages|Successfully installed

# torch comes first, because sam2 is built with it. With build isolation pip would unpack a second torch
# with CUDA into the temporary folder.
define install_requirements
@: > .venv/install.log
@.venv/bin/python tools/install_plan.py
$(call logged,Installing torch,.venv/bin/python tools/install_torch.py)
$(call logged,Installing the rest,$(PIP_INSTALL) --no-build-isolation -r $(1),$(STEPS))
endef

# UV: the tool that makes the lock files. It is installed aside, as nothing else needs it.
UV := .venv/uv/bin/uv
# $(call lock_file,INPUTS,OTHER OPTIONS,LINES TO LEAVE OUT,FILE): resolve; keep the file's comments and,
# without UPGRADE=1, its versions.
define lock_file
@folder=$$(mktemp -d); cp $(4) "$$folder/lock"; sed -n '/^#/p' $(4) > "$$folder/head"; \
$(UV) pip compile --quiet --python-platform linux --python-version 3.11 --no-header --no-annotate \
    $(if $(UPGRADE),--upgrade) $(2) $(1) -o "$$folder/lock" > /dev/null; \
grep -vE '$(3)' "$$folder/lock" | cat "$$folder/head" - > $(4); rm -r "$$folder"
endef
# What follows from the build of torch is left out, so that another build can be chosen.
OF_TORCH := ^(nvidia-|cuda-|triton)

$(UV): | .venv/bin/pip
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --target .venv/uv 'uv>=0.8'

lock: $(UV) ## write constraints.txt and the image's list from the requirements (UPGRADE=1: newest versions)
	$(call lock_file,requirements-dev.txt requirements-benchmarks.txt,,$(OF_TORCH),constraints.txt)
	$(call lock_file,requirements.txt,-c constraints.txt --overrides deploy/not-in-image.txt,$(OF_TORCH)|^torch==,deploy/requirements-image.txt)

check-updates: $(UV) ## tell which newer releases the requirements refuse, and who refuses them; it never fails
	@.venv/bin/python tools/check_updates.py $(UV)

install: .venv/.installed
install-dev: .venv/.installed-dev

# The stamp file .installed is written after a complete installation. An interrupted installation
# leaves none, so the next make installs again.
.venv/.installed: requirements.txt constraints.txt | .venv/bin/pip
	$(call install_requirements,requirements.txt)
	@touch $@

.venv/.installed-dev: requirements-dev.txt requirements.txt constraints.txt | .venv/bin/pip
	$(call install_requirements,requirements-dev.txt)
	@touch .venv/.installed $@

.venv/.installed-benchmarks: requirements-benchmarks.txt requirements.txt constraints.txt | .venv/bin/pip
	$(call install_requirements,requirements-benchmarks.txt)
	@touch .venv/.installed $@

# venv installs pip last. If pip is missing, the environment is missing or incomplete.
.venv/bin/pip:
	@for python in $(or $(PYTHON),python3.11 python3 python3.12); do \
	    if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; \
	    then interpreter=$$python; break; fi; \
	done; \
	if [[ -z "$${interpreter:-}" ]]; then \
	    echo '$(or $(PYTHON),python3) is missing or not Python 3.11 or 3.12:' \
	        'use make PYTHON=/path/to/python3.11' >&2; exit 1; fi; \
	if ! "$$interpreter" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "$$interpreter cannot make environments: on Debian and Ubuntu, apt install" \
	        "$$("$$interpreter" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 1; fi; \
	echo "Making .venv with $$interpreter ($$("$$interpreter" --version))"; \
	"$$interpreter" -m venv --clear .venv
