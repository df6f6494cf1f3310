# `make quickstart` and `make test` start on a bare machine with Python >= 3.10; both reuse .venv while requirements.txt is unchanged.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin/python
STAMP := $(VENV)/.complete
IDENTITIES ?= 2000
SEED ?= 0
RUN := runs/quickstart

.PHONY: quickstart test setup data seeds

setup: $(STAMP)

$(STAMP): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; set PYTHON=python3.x" >&2; exit 2; }
	rm -f $(STAMP)
	test -x $(BIN) || $(PYTHON) -m venv $(VENV)
	$(BIN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $(STAMP)

data: $(STAMP)
	$(BIN) -m datasets.synthetic --layout orbench --root data/synthetic --identities $(IDENTITIES) --test-identities 100

quickstart: data
	$(BIN) train.py --config configs/reid5o/quickstart.yaml --overwrite seed=$(SEED)
	$(BIN) test.py --run $(RUN)
	$(BIN) infer.py --run $(RUN) --task NIR+CP+SK+TEXT --index 0 --top-k 10 --output $(RUN)/retrieval.png
	@echo "results: $(RUN)/results.json, retrieval.png, curves.png, combinations.png, report.html"

# Three training seeds on the same data, with mean and spread of the benchmark's averages (three times the quickstart's training).
seeds: data
	$(BIN) -m benchmarks.seeds --config configs/reid5o/quickstart.yaml --seeds 0 1 2

test: $(STAMP)
	$(BIN) -m pytest
