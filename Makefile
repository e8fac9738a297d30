# Each target does all its own set-up on a fresh Debian machine and is quick when that is there already.
#
#   make demo    grow a small MoE on real text and show what that bought
#   make build   the program: build/release/coppice
#   make core    the program without libtorch: build/core/coppice
#   make test    everything CI runs          make test-fast   the unit tests
#   make bench   coppice beside its peers    make lint        format, tidy, layers
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.PHONY: demo build core test test-fast bench lint format asan tsan clean

export CCACHE_SLOPPINESS := pch_defines,time_macros,include_file_mtime,include_file_ctime
export CCACHE_BASEDIR := $(CURDIR)
export CCACHE_NOHASHDIR := 1
JOBS ?= $(shell nproc)
# Where there is an NVIDIA GPU, `make build` makes a program that computes on it; GPU= on the command line: one that does not.
GPU ?= $(shell nvidia-smi -L 2>/dev/null | head -1)

# $(call configure_and_build,preset,environment[,targets[,cuda]])
define configure_and_build
settings=$$(tools/setup $(2)); eval "$$settings"; export LIBTORCH="$${LIBTORCH:-}" COPPICE_PYTHON="$${COPPICE_PYTHON:-}"
cmake --preset $(1) -DCOPPICE_PLOTLY_JS="$$COPPICE_PLOTLY_JS" $${LIBTORCH:+-DLIBTORCH="$$LIBTORCH"} -DCOPPICE_TESTS=$(if $(filter full,$(2)),ON,OFF) -DCOPPICE_CUDA=$(or $(4),OFF) --log-level=WARNING >&2
cmake --build build/$(1) -j $(JOBS) $(if $(3),--target $(3)) >&2
endef

build:
	$(call configure_and_build,release,$(if $(GPU),gpu,light),coppice,$(if $(GPU),AUTO))

core:
	$(call configure_and_build,core,core,coppice)

demo: build
	build/release/coppice demo $(DEMO)

test:
	tools/run_tests all

test-fast:
	$(call configure_and_build,release,full)
	ctest --test-dir build/release --no-tests=error -L fast --output-on-failure -j $(JOBS)

bench:
	$(call configure_and_build,release,full,,$(if $(GPU),AUTO))
	tools/run_bench

lint:
	tools/setup full > /dev/null
	tools/lint

format:
	git ls-files 'coppice/*.h' 'coppice/*.cpp' 'coppice/*.cu' 'tests/*.cpp' 'bench/*.cpp' 'fuzz/*.cpp' 'python/*.h' 'python/*.cpp' 'examples/*.cpp' | xargs clang-format-19 -i

# Needs an hour: the whole training engine under the sanitizers of addresses and undefined behaviour.
asan:
	$(call configure_and_build,asan,full)
	ASAN_OPTIONS=detect_leaks=0 ctest --test-dir build/asan --no-tests=error -L fast --output-on-failure -j $(JOBS)

tsan:
	$(call configure_and_build,tsan,full)
	ctest --test-dir build/tsan --no-tests=error -L fast --output-on-failure -j $(JOBS)

clean:
	rm -rf build
