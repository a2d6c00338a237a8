"""IPVS mode: the kernel's own load balancer has a virtual server for every front of every Service.

Besides what every mode has (CONTRIBUTING.md, *The files of a mode*):

desired    what all Services together ask for
rules      brings the chains of the frame into the tables of iptables
sets       keeps IP sets
schedulers which scheduler divides connections as a Service asks for
order      the order of real servers, on which Maglev's tables depend
spill      near endpoints come first, up to a limit of connections
pieces     what a Service consists of in the kernel, piece by piece
kernel     what is done to the kernel; fake: the same in memory
drain      real servers that are gone keep their connections until these end, or end them
afterwards what is done a while after a sync
hold       new connections wait while virtual servers are deleted
"""
