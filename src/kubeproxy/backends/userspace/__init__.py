"""Userspace mode: connections are carried by a relay.

Two modes share the package, so most files of a mode are those of nftables mode.

driver             rules lead every front to the relay: nftables mode's, with its sockets as endpoints
led_sockets        the sockets that stand in place of endpoints
listening          no rules: the relay listens on the Services' own addresses
mode               the value of the first
unprivileged_mode  the value of the second
prepare            makes the driver of the first
here               this host's addresses
"""
