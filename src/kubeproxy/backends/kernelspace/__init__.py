"""kernelspace mode: on Windows, HNS has a load balancer for every front of every Service.

Besides what every mode has (CONTRIBUTING.md, *The files of a mode*):

desired    what all Services together ask for
view       what HNS has, as it was read and changed since; both IP families share one
network    what the mode needs to know of the HNS network and of HNS itself
settle     brings HNS to what is asked for, in an order that interrupts no traffic
rehearse   an HNS in memory that holds what was read
"""
