"""Userspace mode: connections are carried by a relay.

led        rules lead every front to the relay: nftables mode's, with the relay's sockets in place of endpoints
listening  no rules: the relay listens on the Services' own addresses
mode       makes the one or the other
"""
