# make demo         install, make the sample data, train nano on it, test it and the network of the repository:
#                   under ten minutes on two CPU cores
# make test         install, check style and types, run all fast tests
# make test-all     also run the slow tests: launchers, fault drill, reports; the page, if there is a Chromium
# make compare      train the networks that the paper compares, if results are missing: hours on two CPU cores
# make gpu          verify and measure everything on the GPU, in eight minutes: see docs/gpus.md
# make test-web     test the page of app.py in Chromium, which must be installed
# make pictures-web make the pictures of the page in docs/ again, with the weights in checkpoints/
# make test-versions  run the fast tests on the oldest and the newest supported versions, in separate environments
# make lock         update requirements.lock after changing a requirements file; LOCK_FLAGS=--upgrade: newer versions
# make clean        remove the files of `make demo`

# The first Python that runs, is new enough and can make environments; `make PYTHON=…` overrides it.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.12 python3.11 python3; do \
	$$python -c '$(USABLE)' 2>/dev/null && echo $$python && break; done)
VENV := .venv
RUN := $(VENV)/bin/python

DEMO := demo
DEMO_RUN := $(DEMO)/run
DEMO_IMAGES ?= 1400
DEMO_EPOCHS ?= 2
# Objects to train on: two epochs of them took less than four minutes.
DEMO_OBJECTS ?= 6000
DEMO_DATA := $(DEMO)/data-$(DEMO_IMAGES)
# Two processes each get half of the files, sorted by name; the first to finish takes work from the other.
TEST_FLAGS ?= --numprocesses 2 --dist worksteal
BROWSER := $(shell for name in chromium chromium-browser google-chrome-stable google-chrome; do \
	command -v $$name && break; done)
# Minimum overall IoU of the demo on val, and its minimum drop if the expressions are shuffled.
DEMO_LEAST ?= 60
DEMO_DROP ?= 25
DEMO_FLAGS := --dataset refcoco --refer_data_root $(DEMO_DATA) -j 1
DEMO_TEST := $(RUN) test.py $(DEMO_FLAGS) -b 32
# What four minutes of training give, and what 80 gave.
DEMO_TRAINED := --resume $(DEMO_RUN)/best_refcoco.pth
DEMO_SHIPPED := --resume checkpoints/sample_nano.safetensors

.PHONY: demo test test-all test-suite style install-all compare gpu test-web test-versions lock pictures-web clean

demo: $(VENV)/installed
	rm -rf $(DEMO_RUN)
	$(RUN) -m data.sample --root $(DEMO_DATA) --images $(DEMO_IMAGES) --version 1
	$(RUN) train.py $(DEMO_FLAGS) --bert_tokenizer $(DEMO_DATA)/vocab.txt --swin_type nano --bert_type nano \
		--img_size 56 -b 16 --lr 0.001 --epochs $(DEMO_EPOCHS) --limit-train $(DEMO_OBJECTS) --eval-every 2 \
		--align-temperature 0.1 --train-temperature --align-prior 0.04 \
		--dropout 0 --drop_path 0 --print-freq 50 --output-dir $(DEMO_RUN)
	$(DEMO_TEST) $(DEMO_TRAINED) --split val --json $(DEMO_RUN)/val.json --save-masks $(DEMO_RUN)/val
	$(DEMO_TEST) $(DEMO_TRAINED) --split testA testB --json "$(DEMO_RUN)/{split}.json"
	$(DEMO_TEST) $(DEMO_TRAINED) --split val --shuffle_expressions --json $(DEMO_RUN)/val_shuffled.json
	$(DEMO_TEST) $(DEMO_SHIPPED) --split val --json $(DEMO_RUN)/shipped/val.json --save-masks $(DEMO_RUN)/shipped/val
	$(DEMO_TEST) $(DEMO_SHIPPED) --split testA testB --json "$(DEMO_RUN)/shipped/{split}.json"
	$(RUN) -m lib.pictures curves $(DEMO_RUN) --out $(DEMO_RUN)/curves.png
	$(RUN) -m lib.pictures sheet $(DEMO_RUN)/val $(DEMO_RUN)/shipped/val --count 9 --out $(DEMO_RUN)/sheet.png
	$(RUN) -m lib.evaluation table $(foreach split,val testA testB,$(DEMO_RUN)/$(split).json) \
		$(foreach split,val testA testB,$(DEMO_RUN)/shipped/$(split).json) \
		--control $(DEMO_RUN)/val_shuffled.json --out $(DEMO_RUN)/table.md --least $(DEMO_LEAST) --drop $(DEMO_DROP)
	@echo "Look at $(DEMO_RUN)/: table.md, curves.png, sheet.png, val/overlays/"

test: style
	$(RUN) -m pytest $(TEST_FLAGS) -m "not slow"

# `make --jobs 3 test-all` runs its three parts beside each other, which keeps two cores busy.
test-all: style test-suite $(if $(BROWSER),test-web)
	@$(if $(BROWSER),:,echo "The page was not tested, because there is no Chromium")

# After all packages, so that no test meets one that is half installed.
test-suite: install-all
	$(RUN) -m pytest $(TEST_FLAGS)

style: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# COMPARE_FLAGS=--quick: on few images, in minutes; --hard: on harder data; --long: twice as long.
compare: $(VENV)/installed
	$(RUN) -m experiments.compare $(COMPARE_FLAGS)
	$(RUN) -m experiments.report $(COMPARE_FLAGS)

# GPU_FLAGS=--minutes 40: measure more than in eight minutes; --quick: try the command on the CPU.
gpu: $(VENV)/installed-test
	$(RUN) -m benchmarks.gpu --out gpu-run $(GPU_FLAGS)

# WEB_SCREENSHOTS=web-screenshots in the environment: keep how the pages look in that folder.
test-web: $(VENV)/installed-web
	$(RUN) -m pytest tests/web

pictures-web: $(VENV)/installed-web
	$(RUN) -m tests.web.pictures

# VERSIONS_FLAGS, for example --only oldest, --python 3.12: see tests/versions.py.
test-versions: $(VENV)/installed-test
	$(RUN) -m tests.versions $(VERSIONS_FLAGS)

# Locked versions are kept if the requirements still allow them.
lock: $(VENV)/installed-test
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(RUN) -m uv pip compile --quiet --universal --python-version 3.11 \
		$(LOCK_FLAGS) --output-file requirements.lock requirements-test.txt requirements-web.txt

clean:
	rm -rf $(DEMO)

# What `test-all` needs, before its parts run beside each other.
install-all: $(VENV)/installed-test $(if $(BROWSER),$(VENV)/installed-web)

# Packages are not compiled when they are installed: Python compiles what it imports, once, if it may keep it.
unexport PYTHONDONTWRITEBYTECODE
# All environments get the versions of requirements.lock. uv takes a third of pip's time, and is told pip's index; pip
# itself tries if uv fails, as where only pip was told of a certificate or of files on this disk.
LOCKED := --quiet --constraint requirements.lock
PIP := $(RUN) -m pip install --no-compile $(LOCKED)
# The environment counts more than pip's section [install], and that more than [global].
PIP_INDEX = $$($(RUN) -m pip config list | sed -n -e "s/^:env:[.]index-url='\(.*\)'$$/1 \1/p" \
	-e "s/^install[.]index-url='\(.*\)'$$/2 \1/p" -e "s/^global[.]index-url='\(.*\)'$$/3 \1/p" | sort | sed -n "1s/^. //p")
install = @echo "Installing $(1)"; index="$(PIP_INDEX)"; { $(PIP) uv && $(RUN) -m uv pip install --python $(RUN) \
	$${index:+--default-index "$$index"} $(LOCKED) --requirement $(1); } || $(PIP) --requirement $(1)

$(VENV)/installed: requirements.txt requirements.lock
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer with its venv module is needed" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(call install,requirements.txt)
	touch $@

$(VENV)/installed-test: requirements-test.txt $(VENV)/installed
	$(call install,requirements-test.txt)
	touch $@

$(VENV)/installed-web: requirements-web.txt $(VENV)/installed-test
	$(call install,requirements-web.txt)
	touch $@
