"""The stability levels of the reference's metrics, with which their HELP texts begin.

Metrics that only this program has are without a level. Source: the metrics reference of the Kubernetes
documentation.
"""

from typing import Final

_LEVELS: Final = {
    "STABLE": "kubernetes_healthcheck kubernetes_healthchecks_total",
    "BETA": "kubernetes_build_info kubernetes_feature_enabled",
    "ALPHA": """
        kubeproxy_conntrack_reconciler_deleted_entries_total
        kubeproxy_conntrack_reconciler_sync_duration_seconds
        kubeproxy_iptables_ct_state_invalid_dropped_packets_total
        kubeproxy_iptables_localhost_nodeports_accepted_packets_total
        kubeproxy_network_programming_duration_seconds
        kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total
        kubeproxy_nftables_localhost_nodeport_listeners
        kubeproxy_proxy_healthz_total
        kubeproxy_proxy_livez_total
        kubeproxy_sync_full_proxy_rules_duration_seconds
        kubeproxy_sync_partial_proxy_rules_duration_seconds
        kubeproxy_sync_proxy_rules_duration_seconds
        kubeproxy_sync_proxy_rules_endpoint_changes_pending
        kubeproxy_sync_proxy_rules_endpoint_changes_total
        kubeproxy_sync_proxy_rules_iptables_last
        kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total
        kubeproxy_sync_proxy_rules_iptables_restore_failures_total
        kubeproxy_sync_proxy_rules_iptables_total
        kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds
        kubeproxy_sync_proxy_rules_last_timestamp_seconds
        kubeproxy_sync_proxy_rules_nftables_sync_failures_total
        kubeproxy_sync_proxy_rules_no_local_endpoints_total
        kubeproxy_sync_proxy_rules_service_changes_pending
        kubeproxy_sync_proxy_rules_service_changes_total
        rest_client_request_duration_seconds
        rest_client_requests_total
    """,
}

LEVELS: Final = {name: level for level, names in _LEVELS.items() for name in names.split()}
"""The level of each metric of the reference, by its name."""


def described(name: str, text: str) -> str:
    """The HELP text of a metric."""
    level = LEVELS.get(name)
    return f"[{level}] {text}" if level else text
