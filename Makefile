# Every target does its own set-up: Debian packages through apt-get where they are missing, a virtual environment in .venv.
# Root is needed for what touches the kernel (demo, test, bench): they build network namespaces of their own.

PYTHON ?= python3
PROGRAMS = ip iptables iptables-legacy nft conntrack setpriv
PACKAGES = iproute2 iptables nftables conntrack util-linux
TEST_PROGRAMS = systemd-analyze
TEST_PACKAGES = systemd
VM_PROGRAMS = qemu-system-x86_64 busybox cpio depmod ipset ipvsadm
VM_PACKAGES = qemu-system-x86 busybox-static cpio kmod ipset ipvsadm
WORKERS ?= 4
ROUNDS ?= 10

.PHONY: help install demo test fuzz lint format bench clean system test-programs haproxy vm vm-programs
.DELETE_ON_ERROR:

help:
	@echo "make install   .venv/bin/kube-proxy"
	@echo "make demo      a small node in network namespaces, with real traffic (MODE=iptables)"
	@echo "make test      all tests"
	@echo "make fuzz      the tests of properties with new random examples, ROUNDS=10 times"
	@echo "make lint      style, types, import contracts"
	@echo "make format    rewrites the sources in the house style"
	@echo "make bench     measures speed and memory"
	@echo "make clean     removes what was made here"

install: .venv/.run

demo: system .venv/.run
	@PYTHONPATH=. .venv/bin/python -m examples.demo.demo --mode $(or $(MODE),iptables)

test: system test-programs vm .venv/.dev
	.venv/bin/pytest -n $(WORKERS) --dist worksteal $(TESTS)

fuzz: system vm .venv/.dev
	for round in $$(seq $(ROUNDS)); do \
	  .venv/bin/pytest -q -n $(WORKERS) --dist worksteal -m hypothesis --hypothesis-profile=fuzz $(TESTS) || exit; \
	done

lint: .venv/.dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

format: .venv/.dev
	.venv/bin/ruff check --fix-only
	.venv/bin/ruff format

bench: system vm haproxy .venv/.dev
	PYTHONPATH=. .venv/bin/python -m bench $(BENCH)

clean:
	rm -rf .vm .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
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

vm-programs:
	$(call install,$(VM_PROGRAMS),$(VM_PACKAGES))

.vm/initrd: tests/vm/kernel.py tests/vm/init | vm-programs .venv/.dev
	.venv/bin/python -m tests.vm.kernel

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed (PYTHON=$(PYTHON)); Debian 12 has it: apt-get install python3" >&2; exit 1; }
	@if command -v uv >/dev/null; then uv venv -q --seed --python "$$(command -v $(PYTHON))" .venv; \
	elif $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv .venv; \
	else \
	  test "$$(id -u)" = 0 || { echo "venv is missing; as root: apt-get install python3-venv" >&2; exit 1; }; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null && $(PYTHON) -m venv .venv; \
	fi

.venv/.run: .venv/bin/python pyproject.toml constraints.txt
	.venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	.venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ .venv/.run
