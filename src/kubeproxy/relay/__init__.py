"""The relay: a process that accepts connections and forwards them to endpoints.

Each IP family that needs it has a process of its own. Python runs only one thread of a process at a time, so
traffic would wait while the control loop plans 5,000 Services, and the control loop would wait for traffic.
(While the control loop computes, a relay in a thread of the same process carries 0.04 GB/s and 480
connections a second, one in its own process 0.7 GB/s and 3,100.) The daemon opens the listening sockets and
keeps a copy of each, so that the ports stay open and waiting clients are not lost if the process ends. The
process receives the sockets, and how to serve them, over a socket.

In this package a *target* is an address and port that the relay connects to, usually an endpoint.

values     the messages between the daemon and the process
table      the listeners that the process should have, and which messages it still needs
control    the daemon's side: starts the process, and replaces it if it ends or hangs
metrics    its metrics
process    one relay process, and the socket to it
doors      the listeners of a driver, by name
sockets    opens listening sockets
steering   ports that need no sockets of their own: the kernel steers their clients to one socket
gate       the process' side of such a socket
worker     the process' side: handles the daemon's messages
loop       the event loop of the process: sockets and timers
balancer   chooses the target of a client
dividing   how clients are divided among targets
slots      counts descriptors
tcp        accepts clients and connects them to a target
connection forwards the bytes of a connection by splice(2)
pipes      the buffers between the two sockets of a connection
udp        flows of UDP packets
origin     the destination of a client before its address was translated
header     PROXY protocol
shared     what all listeners of a process share
tallies    what the process counts by target
presence   which targets were removed, and the end of connections to them
listing    the clients of a front that have a target
questions  what the daemon asks the process
traffic    the same as the daemon knows it, which asks for it
"""
