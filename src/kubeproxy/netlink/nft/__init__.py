"""nf_tables, spoken without the nft program.

    messages      what a transaction is made of: tables, chains, rules, sets, elements
    types         what keys and data are
    expressions   what rules are made of
    objects       what the kernel says it holds
    kernel        transactions and dumps
    monitor       word of what others change
    text          the same objects as nft lists them; `reading` does rules
    fake          a kernel in memory

Sources: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h; the layout of userdata is libnftnl's (udata.h), which
is what the nft program prints comments and types from.
"""
