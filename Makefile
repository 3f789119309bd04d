# SPDX-License-Identifier: Apache-2.0
# Short names for the commands developers use. `make dev` comes first, in a virtual environment.
.PHONY: dev check test-all lint format tidy asan tsan fuzz bench bench-peers docs pins clean

sources := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl' 'csrc/*.cu' 'bench/*.cu' 'bench/*.cpp' 'tests/*.h' 'tests/*.cpp')
sanitized := build/asan

dev:        ## editable install with everything the tests need
	pip install -c constraints.txt scikit-build-core pybind11 cmake ninja
	pip install -c constraints.txt --no-build-isolation -e '.[test,bench]'

check:      ## the gate: what CI runs and what "done" means
	pytest

test-all:   ## the gate and the slow tests
	pytest --run-slow

lint:       ## style and types only
	pytest tests/unit/test_style.py tests/unit/test_layers.py

format:
	ruff check --fix --quiet
	ruff format --quiet
	clang-format -i $(sources)

tidy:       ## clang-tidy over the engine without its kernels
	cmake -S . -B build/tidy -G Ninja -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DPYBIND11_FINDPYTHON=ON \
	  -Dpybind11_DIR=$$(python -m pybind11 --cmakedir)
	clang-tidy --quiet -p build/tidy $(filter-out csrc/kernels/%,$(filter csrc/%.cpp,$(sources)))

asan:       ## the Python suite over an engine built with the address and undefined-behaviour sanitizers
	pip install -c constraints.txt --no-build-isolation --no-deps --target $(sanitized) --upgrade \
	  -C build-dir=build/asan-objects -C cmake.define.WEFT_SANITIZE=address,undefined .
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(sanitized) \
	  pytest --capture=sys tests/engine tests/lifecycle tests/golden

tsan:       ## the C++ tests under the thread sanitizer
	cmake -S . -B build/tsan -G Ninja -DWEFT_SANITIZE=thread -DWEFT_BUILD_TESTS=ON \
	  -DCMAKE_DISABLE_FIND_PACKAGE_pybind11=ON
	cmake --build build/tsan
	ctest --test-dir build/tsan --output-on-failure

fuzz:       ## edited containers, a hundred times as many as in the gate, and edited codecs and segments
	cmake -S . -B build/fuzz -G Ninja -DWEFT_SANITIZE=address,undefined -DWEFT_BUILD_TESTS=ON \
	  -DCMAKE_DISABLE_FIND_PACKAGE_pybind11=ON
	cmake --build build/fuzz --target fuzz_container fuzz_index
	build/fuzz/tests/cpp/fuzz_container 2000000
	ASAN_OPTIONS=hard_rss_limit_mb=2048 TMPDIR=$$(test -d /dev/shm && echo /dev/shm || echo /tmp) \
	  build/fuzz/tests/cpp/fuzz_index 1000000

bench:
	pytest bench

bench-peers: ## weft beside its peers: make bench-peers SETS="FOLDER ..." OUT=FOLDER [ARGS="--queries 100"]
	python bench/peers/run.py $(SETS) --out $(OUT) $(ARGS)
	python bench/peers/report.py $(OUT)/rows.jsonl

docs:       ## the README and the examples of every docstring, run
	pytest tests/unit/test_readme.py tests/unit/test_doctests.py

pins:       ## constraints.txt from the present environment
	python tools/pin.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
