# Each target is one line into the tool or script that does it.
.PHONY: deps venv build deb run test check format bench faults fuzz soak matrix clean

deps:            # installs what is missing, with apt-get
	@tests/run/deps

venv: deps       # build/test-venv: the Python packages of the end-to-end tests
	@tests/run/venv

build: deps      # build/sidewinder, _build/default/lib/sidewinder, python/ with its native modules
	tests/run/build

run: build       # a node, a BEAM connected to it, and a short tour
	@tests/tour/run

test: deps venv  # everything: C++ (plain, asan, tsan), fuzzing, Python, Erlang, end to end, a short soak, checks
	@/usr/bin/python3 tests/run/suites.py

deploy-test: build  # the image, pods, the chart and the examples: root, and the tools that CONTRIBUTING.md names
	@DEPLOY=full /usr/bin/python3 tests/run/suites.py deploy

check: deps      # formatting, static analysis, types
	@tests/run/check

format: deps     # what `check` would ask for
	@tests/run/check --fix

bench: build
	tests/bench/run

faults: build    # every row of the fault table; root, for hosts of their own (network namespaces)
	@tests/run/deps iproute2 nftables
	/usr/bin/python3 tests/faults/run
	/usr/bin/python3 tests/faults/chaos

fuzz: deps       # FUZZ_SECONDS for each target, ten minutes unless told
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-600} /usr/bin/python3 tests/run/suites.py fuzz

deb: deps        # build-deb/sidewinder_VERSION_ARCHITECTURE.deb
	deploy/debian/build

soak: deps       # SOAK_SECONDS under asan, half an hour unless told
	@SOAK_SECONDS=$${SOAK_SECONDS:-1800} /usr/bin/python3 tests/run/suites.py soak

matrix:          # the tests on Debian 13 and sid, in throw-away roots
	@tests/matrix/run

clean:
	rm -rf build build-perf build-asan build-tsan build-fuzz build-tidy build-wheel-* build-deb _build python/erlang/*.so python/erlang_loop/*.so python/erlang_web/*.so
