"""nftables mode: flat tables written over netlink; a change is a handful of map elements.

layout    names, sets and maps, base chains: what the table is made of
packing   elements of one family, from precomputed pieces
compile   a Service's plan -> elements, and the few chains it needs
frame     the rules that do not depend on Services
chains    the rules of chains that Services share by their number of endpoints
sticky    chains and sets of Services with session affinity
held      what the kernel holds, compared
driver    puts it together
"""
