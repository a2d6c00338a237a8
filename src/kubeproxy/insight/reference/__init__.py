"""What rules in the kernel do with a packet, found out from the rules alone.

The rules of Kubernetes' kube-proxy are read and evaluated as the kernel would, for each kind of packet; the
result is compared with the plans of this program. So a node can be checked before it is migrated, without a
packet being sent.
"""
