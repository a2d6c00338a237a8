"""The proxy that carries connections itself: sockets in, sockets out, no rule in the kernel.

It runs in a process of its own, one for each IP family that needs it. Python lets one thread of a process compute at a time:
traffic must not wait for the control loop to plan 5,000 Services, nor the loop for traffic. (While the loop computes, a relay in a
thread beside it carries 0.04 GB/s and 480 connections a second, one in a process 0.7 GB/s and 3,100.) The daemon makes the
listening sockets and keeps a copy of each, so that a port stays ours, and its waiting clients stay, whatever becomes of
the process; the process gets them, and what is to be done with them, over a socket.

values     what passes between the daemon and the process
control    the daemon's side: starts the process, again if need be
sockets    makes listening sockets
worker     the process' side: takes orders
loop       waits for sockets and times
balancer   which target a client gets
slots      how many descriptors are left
tcp        clients taken in and connected
connection what is connected: bytes carried by splice(2)
pipes      what they are in meanwhile
udp        flows
origin     where a client wanted to go, as connection tracking knows
header     PROXY protocol
"""
