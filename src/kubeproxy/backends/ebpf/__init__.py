"""ebpf mode: nftables mode, and programs in front of it that connect sockets to endpoints.

What a process of this node connects to, or sends a datagram to, is replaced by an endpoint at that moment;
its packets go there untranslated. Everything else (packets from other hosts, protocols without such hooks,
fronts at which more must be decided than an endpoint, processes outside the cgroup) is served by the table of
nftables mode, which is complete.

    layout     the maps, and how keys and values are packed
    programs/  the programs
    install    makes, adopts, attaches and pins maps and programs
    tables     the maps as one value, in the kernel or in memory
    capacity   how large the maps must be
    numbers    the number of each Service port
    blocks     which slots of the map of endpoints are in use
    edits      changes of one endpoint by one store
    content    keeps the maps equal to plans
    front      all this at work, beside the driver of nftables mode

The other files are those of every mode.
"""
