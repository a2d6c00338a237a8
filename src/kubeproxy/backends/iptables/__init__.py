"""iptables mode: the reference's rules, to the letter, sent as the smallest difference that makes them so.

Besides what every mode has (CONTRIBUTING.md, *The files of a mode*):

batches    inputs of a size that the programs can process
affinity   a warning where the kernel keeps fewer clients than may come
"""
