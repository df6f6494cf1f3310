# `make quickstart` and `make test` start on a bare machine with Python >= 3.10; both reuse .venv while its requirements are unchanged.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin/python
STAMP := $(VENV)/.complete
DEV := $(VENV)/.complete-dev
IDENTITIES ?= 2000
# Processes of `make test`: auto = one for each core, at most eight.
JOBS ?= auto
SEED ?= 0
RUN := runs/quickstart
VI := runs/quickstart-vi
IRMPP := runs/quickstart-irmpp
# Trad, CC, CTCC, LI, VI and T2I, which search one gallery.
IRM_TASKS := --task "joint market" --task "joint prcc" --task "joint real2" --task "joint real2_attr" --task "joint llcm NIR" --task "joint cuhk_pedes"
VI_DATA := --root data/synthetic-vi --test-identities 100 --images-per-modality 8 --image-size 96x48

.PHONY: quickstart quickstart-vi quickstart-irm test lint format docs setup data seeds

setup: $(STAMP)

$(STAMP): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; set PYTHON=python3.x" >&2; exit 2; }
	rm -f $(STAMP)
	test -x $(BIN) || $(PYTHON) -m venv $(VENV)
	$(BIN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $(STAMP)

# What a change is checked with, in the same environment.
$(DEV): requirements-dev.txt requirements-serve.txt $(STAMP)
	$(BIN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $(DEV)

data: $(STAMP)
	$(BIN) -m datasets.synthetic --layout orbench --root data/synthetic --identities $(IDENTITIES) --test-identities 100

quickstart: data
	$(BIN) train.py --config configs/reid5o/quickstart.yaml --overwrite seed=$(SEED)
	$(BIN) test.py --run $(RUN)
	$(BIN) infer.py --run $(RUN) --task NIR+CP+SK+TEXT --index 0 --top-k 10 --output $(RUN)/retrieval.png
	@echo "results: $(RUN)/results.json, retrieval.png, curves.png, combinations.png, report.html"

# The visible-infrared baseline in three official layouts: SYSU-MM01 (all modes), RegDB (trials 1 and 2 merged), LLCM (both directions).
quickstart-vi: $(STAMP)
	$(BIN) -m datasets.synthetic --layout sysu,llcm $(VI_DATA) --identities 300
	$(BIN) -m datasets.synthetic --layout regdb $(VI_DATA) --identities 250
	$(BIN) train.py --config configs/vireid/quickstart.yaml --overwrite seed=$(SEED) name=$(notdir $(VI))-sysu
	$(BIN) test.py --run $(VI)-sysu
	$(BIN) train.py --config configs/vireid/quickstart.yaml --overwrite seed=$(SEED) name=$(notdir $(VI))-regdb data.dataset=regdb --trials 1,2
	$(BIN) test.py --run $(VI)-regdb --trials 1,2
	$(BIN) train.py --config configs/vireid/quickstart.yaml --overwrite seed=$(SEED) name=$(notdir $(VI))-llcm data.dataset=llcm
	$(BIN) test.py --run $(VI)-llcm
	$(BIN) infer.py --run $(VI)-sysu --task "sysu-all-single-seeded draw 0" --index 0 --top-k 10 --output $(VI)-sysu/retrieval.png
	$(BIN) -m benchmarks.chance $(VI)-sysu $(VI)-regdb/trial-01 $(VI)-regdb/trial-02 $(VI)-llcm
	@echo "results: $(VI)-sysu, $(VI)-regdb, $(VI)-llcm (results.json, report.html), $(VI)-sysu/retrieval.png"

# IRM++ on six tasks: a gallery that is encoded once and told nothing. configs/irm/quickstart.yaml is IRM on the same data.
quickstart-irm: $(STAMP)
	$(BIN) -m datasets.synthetic --layout omnireid --root data/synthetic-irm --members market,prcc,real1,real2,llcm,CUHK-Pedes --identities 300 --test-identities 100 --image-size 96x48
	$(BIN) train.py --config configs/irmpp/quickstart.yaml --overwrite seed=$(SEED)
	$(BIN) test.py --run $(IRMPP)
	$(BIN) infer.py --run $(IRMPP) $(IRM_TASKS) --index 0 --top-k 10 --output $(IRMPP)/tasks.png
	$(BIN) infer.py --run $(IRMPP) --task "task-free real2_attr" --index 12,16,21 --threshold 0.75 --output $(IRMPP)/outfits.png
	$(BIN) -m benchmarks.instructions $(IRMPP) --protocol task-free
	$(BIN) -m benchmarks.chance $(IRMPP) --least 5 --lists "task-free (?!.* target).*"
	@echo "results: $(IRMPP)/results.json, report.html, tasks.png, outfits.png"

# Three training seeds on the same data, whose mean and spread become the band of the quickstart (three times its training).
seeds: data
	$(BIN) -m benchmarks.reproduce configs/reid5o/quickstart.yaml --record --seeds 0 1 2

# Several processes, one compute thread in each; the files marked with threads(2) take two.
test: $(DEV)
	@echo "$(JOBS) processes with 1 compute thread each; 2 in `grep -l 'pytest.mark.threads(2)' tests/test_*.py | xargs -n 1 basename -s .py | xargs`"
	$(BIN) -m pytest -n $(JOBS)

lint: $(DEV)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(BIN) -m mypy configs datasets model serve solver utils benchmarks train.py test.py infer.py anyreid.py tests

format: $(DEV)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN) -m mkdocs build --quiet --strict
