"""eBPF without a compiler: an assembler, and bpf(2) for programs, maps, links and pins.

assembler    labels, named registers, and the C that each group of instructions stands for
disassembly  programs as text
btf          type information, with which bpftool prints names
syscall      bpf(2) itself
maps         maps as Python containers
programs     loads programs; the verifier's log with our labels
pins         objects by names in a BPF file system, and links to a cgroup
"""
