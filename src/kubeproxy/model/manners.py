"""Differences between modes in the treatment of packets that plans do not determine.

Each mode has one such value.
"""

from msgspec import Struct


class Manners(Struct, frozen=True, gc=False):
    """What a mode does with packets that plans do not determine.

    Attributes:
        closed_cluster_ips: ports of a ClusterIP that are no Service's reject, and addresses of the
            ServiceCIDRs that are no Service's drop; otherwise routing decides.
        refuses_everywhere: a node port without usable endpoints drops or rejects on every local address, also
            on those that do not serve node ports.
        lets_own_out: what a process of this node sends to an external or load balancer IP elsewhere is not
            refused when there are no usable endpoints; routing decides.
        firewall_first: source ranges are checked before the Service is looked up. So they also apply if there
            are no endpoints, and if the load balancer IP is one of the Service's external IPs, too; otherwise
            neither.
        falls_back: a front with policy Local that has no endpoint on this node leads to those elsewhere,
            where the Service has any for external traffic; and the policy applies to what local Pods and this
            node itself send, too.
        owns_addresses: the Services' addresses are the node's own. So other ports of them reject, and what a
            process of this node sends to one comes from that address; source ranges are compared with the
            node's address instead, and only where there are endpoints.
        by_policy_alone: the policy of external traffic applies to what local Pods and this node itself send,
            too.
        passes_unserved: a front without endpoints is no front: routing decides.
        admits_all: source ranges do not apply.
        one_port: a front has one port for all endpoints; those with another port than most are left out.
        at_connect: sockets of the node's processes, and of local Pods if so configured, are connected to
            endpoints: their packets are not translated, and never masqueraded.
    """

    closed_cluster_ips: bool = False
    refuses_everywhere: bool = False
    lets_own_out: bool = False
    firewall_first: bool = False
    falls_back: bool = False
    owns_addresses: bool = False
    by_policy_alone: bool = False
    passes_unserved: bool = False
    admits_all: bool = False
    one_port: bool = False
    at_connect: bool = False
