# make demo   install, make the sample data, train nano on it, test it: ten minutes on two CPU cores
# make test   install, check the style, run all tests
# make clean  remove what `make demo` made

# The newest of the supported Pythons that is installed; `make PYTHON=…` overrides it.
PYTHON ?= $(firstword $(shell command -v python3.12) $(shell command -v python3.11) python3)
VENV := .venv
RUN := $(VENV)/bin/python

DEMO := demo
DEMO_DATA := $(DEMO)/data
DEMO_IMAGES ?= 2000
DEMO_EPOCHS ?= 2
DEMO_FLAGS := --dataset refcoco --refer_data_root $(DEMO_DATA) --bert_tokenizer $(DEMO_DATA)/vocab.txt

.PHONY: demo test clean

demo: $(VENV)/installed
	rm -rf $(DEMO)/run
	$(RUN) -m data.sample --root $(DEMO_DATA) --images $(DEMO_IMAGES)
	$(RUN) train.py $(DEMO_FLAGS) --swin_type nano --bert_type nano --img_size 56 -b 16 -j 1 \
		--epochs $(DEMO_EPOCHS) --lr 4e-4 --dropout 0 --drop_path 0 --print-freq 50 --output-dir $(DEMO)/run
	for split in val testA testB; do \
		$(RUN) test.py $(DEMO_FLAGS) --split $$split --resume $(DEMO)/run/best_refcoco.pth -b 32 -j 1 \
			--json $(DEMO)/run/$$split.json || exit 1; \
	done
	$(RUN) test.py $(DEMO_FLAGS) --split val --resume $(DEMO)/run/best_refcoco.pth -b 32 -j 1 \
		--shuffle_expressions --json $(DEMO)/run/val_shuffled.json
	$(RUN) -m lib.plots $(DEMO)/run --out $(DEMO)/run/curves.png

test: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m pytest

clean:
	rm -rf $(DEMO)

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/installed-test: requirements-test.txt $(VENV)/installed
	$(RUN) -m pip install --quiet --requirement requirements-test.txt
	touch $@
