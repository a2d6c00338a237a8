"""The host that tests run on: what is made through it belongs to the network namespace of the thread that makes it."""

from kubeproxy.machine.linux import LinuxMachine

MACHINE = LinuxMachine()
