"""IPVS mode: the kernel's own load balancer has a virtual server for every front of every Service.

compile    one Service's plan -> virtual servers, set elements, rules; a pure function
desired    what all Services together ask for
frame      the iptables rules around it
kernel     what is done to the kernel
drain      real servers that are gone keep their connections until these end
hold       new connections wait while virtual servers are deleted
driver     brings the kernel from one to the other
"""
