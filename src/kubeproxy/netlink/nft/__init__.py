"""nf_tables over netlink, without the nft program.

    messages      the messages of a transaction: tables, chains, rules, sets, elements
    types         the types of keys and data
    expressions   the expressions of which rules consist
    objects       reads the objects of a table from the kernel
    kernel        transactions and dumps
    monitor       notifications about changes by other processes
    lookout       a monitor in an event loop
    text          tables in the syntax of the nft program; `reading` converts rules
    fake          a kernel in memory

Sources: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h; the layout of userdata, from which the nft
program prints comments and types, is that of libnftnl (udata.h).
"""
