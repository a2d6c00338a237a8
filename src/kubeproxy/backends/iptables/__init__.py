"""iptables mode: exactly the reference's rules, written as the smallest difference to what is there.

Besides what every mode has (CONTRIBUTING.md, *The files of a mode*):

batches    inputs of a size that the programs can process
affinity   a warning that the kernel remembers a limited number of clients
"""
