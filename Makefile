# make merge [RECIPE=recipes/NAME.yaml]   set up, then run the trip (the embedded tiny pair without RECIPE)
# make test                               set up, then run the tests
# make bench                              speed and memory against the naive way (minutes)
# make bench-quality                      every method against the scalar curve on trained pairs (15 minutes);
#   QUALITY="--full --pair DIR DIR"       all methods, 200 questions a level, sampled too, on pairs of your own (hours)
# make check                              lint, format, types (as on Linux, macOS and Windows), import contracts
# make docs                               the documentation as a site: build/site/index.html
PYTHON ?= python3
RECIPE ?= recipes/tiny.yaml
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check
WHEELS := build/wheels

LLAMA  := $(shell sed -n 's/^llama-cpp-python/llama-cpp-python/p' constraints.txt)
# Only llama.cpp's library is wanted: no tools, examples, tests, server, multimodal or common code.
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
	-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_CURL=OFF \
	-DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/quant/llama_library_only.cmake

.PHONY: merge test bench bench-quality check docs setup clean
.DELETE_ON_ERROR:

merge: setup
	@$(BIN)/rpam run $(RECIPE)

# Two processes with one thread each: quicker than one with two, and models as small as these need no more.
test: setup
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench-quality: setup
	@$(BIN)/python -m bench.quality $(QUALITY)

bench: setup
	@$(BIN)/python -m bench.fit
	@$(BIN)/python -m bench.tiny
	@$(BIN)/python -m bench.merge
	@$(BIN)/python -m bench.export
	@$(BIN)/python -m bench.quantize
	@$(BIN)/python -m bench.engines
	@$(BIN)/python -m bench.divergence
	@$(BIN)/python -m bench.siblings
	@$(BIN)/python -m bench.labels

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin
	@$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	@$(BIN)/lint-imports

# Installed when asked for: nothing else needs it. A link or a heading that does not exist ends the build.
docs: setup
	@$(BIN)/python -c "import latex2mathml, material" 2>/dev/null || $(PIP) install -q -c constraints.txt -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

setup: $(VENV)/.ready

# The llama.cpp build takes minutes and needs nothing of the rest, so both run side by side.
$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Setting up .venv (once): Python packages download while llama.cpp compiles."
	@echo "That takes about 6 minutes on 2 cores; later calls start at once."
	@$(MAKE) --no-print-directory -j2 $(VENV)/.packages $(WHEELS)/.built
	@$(PIP) install -q --no-deps $(WHEELS)/llama_cpp_python-*.whl
	@$(PIP) install -q -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c "import llama_cpp, torch, transformers"
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'rpam_lite needs Python 3.11 or newer')"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.packages: constraints.txt
	@grep -v '^llama-cpp-python' constraints.txt > $(VENV)/packages.txt
	@$(PIP) install -q -r $(VENV)/packages.txt
	@touch $@
	@echo "Python packages are installed; llama.cpp may still be compiling."

$(WHEELS)/.built: constraints.txt quant/llama_library_only.cmake
	@mkdir -p $(WHEELS)
	@command -v c++ >/dev/null || { echo "A C++ compiler is missing; on Debian: apt-get install g++"; exit 1; }
	@rm -f $(WHEELS)/llama_cpp_python-*.whl
	@$(PIP) wheel -q --no-deps -w $(WHEELS) $(LLAMA)
	@touch $@
	@echo "llama.cpp is compiled."

clean:
	rm -rf $(VENV) build dist runs
