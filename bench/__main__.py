"""`make bench` runs all measurements, `make bench BENCH="memory"` only the named ones."""

import argparse
import os
import platform
import sys
from importlib import import_module
from pathlib import Path

BENCHES = (
    "balancing",
    "connect",
    "conntrack",
    "drill",
    "ebpf",
    "explain",
    "iptables",
    "ipvs",
    "journal",
    "kernelspace",
    "localhost",
    "manifests",
    "memory",
    "metrics",
    "nftables",
    "nodes",
    "pace",
    "page",
    "ranges",
    "top",
    "start",
    "userspace",
    "verify",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benches", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)} (default: all)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often each figure is measured; the median is printed"
    )
    options = parser.parse_args()
    unknown = set(options.benches) - set(BENCHES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        sys.exit("the benches build network namespaces: they need root")
    model = next(
        (
            line.partition(": ")[2]
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "?",
    )
    print(
        f"{os.cpu_count()} x {model}, Linux {platform.release()}, Python {platform.python_version()}, {options.rounds} rounds"
    )
    for name in options.benches or BENCHES:
        print(f"\n{name}\n{'-' * len(name)}", flush=True)
        import_module(f"bench.{name}").main(options.rounds)


if __name__ == "__main__":
    main()
