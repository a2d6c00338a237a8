"""nftables mode: flat tables written over netlink; a change is a handful of map elements.

Besides what every mode has (CONTRIBUTING.md, *The files of a mode*):

layout       names, sets and maps, base chains: what the table is made of
packing      elements of one family, from precomputed pieces
statements   what rules are made of
chains       the rules of chains that Services share by their number of endpoints
own          chains, sets and maps of single Services
sticky       rules of Services with session affinity
firewall     elements of Services with source ranges
content      what the table is to hold: all plans, and the transaction for a change
uses         what several Services need together
transaction  messages in an order that the kernel accepts
probe        what the kernel does not support
forwarding   chains of others that drop forwarded packets
"""
