"""kernelspace mode: on Windows, HNS has a load balancer for every front of every Service.

Besides what every mode has (CONTRIBUTING.md, *The files of a mode*):

desired    what all Services together ask for
view       what HNS has, as it was read and changed since; both IP families share one
forms      the forms in which HNS returns load balancers, which may not be those that it was sent
network    what the mode needs to know of the HNS network and of HNS itself
finding    looks that up
subnets    which host has an address, on overlay networks
settle     brings HNS to what is asked for, in an order that interrupts no traffic
endpoints  the part of it that concerns endpoints
refused    what HNS refused, and when it is tried again
patience   calls HNS in a thread, and reports a call that it does not answer
rehearse   an HNS in memory that holds what was read
"""
