# CMake does the work; this names what one wants of it, and sets up a fresh machine.
#
#   make                   build into build/ (programs in build/bin); installs nothing on the system
#   make demo              set up, build, draw pictures and answer prompts about them
#   make test              set up, build, and run every test, most of them under sanitizers too
#   make deps              install what tools/debian-packages.txt lists and the system lacks
#   make soak              the tests of faults and of simulated fleets at full length: hours
#   make test-asan         every test, built with AddressSanitizer and UndefinedBehaviorSanitizer
#   make test-swiftshader  every test on SwiftShader instead of the system's Vulkan drivers
#   make fuzz              every fuzz target for FUZZ_SECONDS (300), with clang
#   make format            clang-format over the sources
#   make install           into PREFIX (/usr/local), under DESTDIR
#   make clean             remove build/
#
# Variables: JOBS, processes at a time (all cores); BUILD, the build directory; WERROR=ON makes warnings errors, as
# .ci/run does; CMAKE_ARGS and CTEST_ARGS are passed on (CTEST_ARGS="-R link -V").

BUILD = build
JOBS = $(shell nproc 2>/dev/null || echo 2)
PREFIX = /usr/local
FUZZ_SECONDS = 300
WERROR =
CMAKE_ARGS =
CTEST_ARGS =

# $(call build,DIRECTORY,MORE CMAKE ARGUMENTS,MORE BUILD ARGUMENTS): configure, then build. What keeps a configuration
# from succeeding is mostly a missing package, so that is said then.
define build
@command -v cmake >/dev/null || { tools/deps --explain; exit 1; }
@cmake -S . -B $1 $2 $(if $(WERROR),-DESP_WERROR=$(WERROR)) $(CMAKE_ARGS) || { tools/deps --explain; exit 1; }
@MAKEFLAGS=--no-print-directory cmake --build $1 --parallel $(JOBS) $3
endef

# $(call suite,DIRECTORY,ENVIRONMENT,MORE CTEST ARGUMENTS): every test there.
suite = $2 ctest --test-dir $1 --parallel $(JOBS) --output-on-failure --no-tests=error $3 $(CTEST_ARGS)

# A message of the validation layer, synchronization validation included, ends the process that caused it.
VALIDATE = ESPALIER_VALIDATE=fatal

.PHONY: all deps demo test soak build-asan test-asan test-swiftshader fuzz format install clean
.NOTPARALLEL:

all:
	$(call build,$(BUILD))

deps:
	@tools/deps

demo: deps
	$(call build,$(BUILD),,--target espalier espalier-coordinator espalier-worker espalier-scenes)
	@tools/demo $(BUILD)/bin

# First everything, as built for use and under the validation layer; then with sanitizers all but what mostly waits for the
# device or for the clock (make test-asan has that too). In this order because a CPU driver's compiler takes four times as
# long in a process with sanitizers: it finds most kernels compiled then.
test: deps all build-asan
	$(call suite,$(BUILD),$(VALIDATE))
	$(call suite,$(BUILD)/asan,,-LE "kernel|golden|sim" --no-tests=ignore)

# ESPALIER_SOAK=1 tells tests to use their full counts, -DESP_SOAK=ON gives them the time for it. One at a time: they
# measure.
soak: deps
	$(call build,$(BUILD)/soak,-DESP_SOAK=ON)
	ESPALIER_SOAK=1 ctest --test-dir $(BUILD)/soak --output-on-failure --no-tests=error -L "fault|sim" $(CTEST_ARGS)

build-asan:
	$(call build,$(BUILD)/asan,-DESP_SANITIZE=ON)

test-asan: deps build-asan
	$(call suite,$(BUILD)/asan)

# VK_ICD_FILENAMES is what loaders before 1.3.207 know, VK_DRIVER_FILES its new name.
test-swiftshader: deps all
	icd=$$(tools/swiftshader-driver $(BUILD)/swiftshader) && \
	$(call suite,$(BUILD),$(VALIDATE) VK_ICD_FILENAMES=$$icd VK_DRIVER_FILES=$$icd)

# Needs clang and libclang-rt-dev, which nothing else does.
fuzz:
	$(call build,$(BUILD)/fuzz,-DESP_FUZZ=ON -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++,--target fuzzers)
	tools/fuzz $(BUILD)/fuzz $(FUZZ_SECONDS) $(JOBS)

format:
	tools/format

install: all
	cmake --install $(BUILD) --prefix $(PREFIX)

clean:
	rm -rf $(BUILD)
