"""A virtual machine for tests of what this machine's kernel lacks: Debian's own kernel, over this very file system.

    python -m tests.vm COMMAND...    runs a command in it, e.g. `python -m tests.vm ipvsadm -L`

Tests marked `vm` run in it, all by one boot, beside the other tests; see `plugin`.
"""
