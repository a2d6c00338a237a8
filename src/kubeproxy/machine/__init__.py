"""The host as one value: everything that is asked of it, or done to it, goes through a Machine.

    base     what a machine offers
    linux    this host, in the process's network namespace or in another one
    fake     a host in memory, of which hundreds fit into one process

A machine is bound to one network namespace. What belongs to the namespace rather than to one object (how many transactions we
made, which programs are ours) is kept in it, so two daemons in two namespaces of one process know nothing of each other.
"""
