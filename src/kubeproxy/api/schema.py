"""All fields of the kinds that are read: a field that is not here is misspelt, or in the wrong place.

The names are those of the API reference of Kubernetes v1.36 (core/v1, discovery.k8s.io/v1,
networking.k8s.io/v1, meta/v1). A field whose value is None here may hold anything: a plain value, a map with
free keys, or what only programs write.
"""

from collections.abc import Mapping
from typing import Final

from kubeproxy.fields import Schema


def _of(names: str, **inner: Schema) -> Schema:
    """The schema of some plain fields, and of fields that have fields themselves."""
    return {**dict.fromkeys(names.split()), **inner}


_REFERENCE = _of("apiVersion kind name namespace uid resourceVersion fieldPath")
_CONDITION = _of("type status observedGeneration lastTransitionTime reason message")
_NAMED = _of("name")

_META = _of(
    "name generateName namespace selfLink uid resourceVersion generation creationTimestamp deletionTimestamp"
    " deletionGracePeriodSeconds labels annotations finalizers",
    ownerReferences=_of("apiVersion kind name uid controller blockOwnerDeletion"),
    managedFields=_of("manager operation apiVersion time fieldsType fieldsV1 subresource"),
)


def _object(names: str = "", **inner: Schema) -> Schema:
    return _of(f"apiVersion kind {names}", metadata=_META, **inner)


_SERVICE = _object(
    spec=_of(
        "selector clusterIP clusterIPs type externalIPs sessionAffinity loadBalancerIP loadBalancerSourceRanges externalName"
        " externalTrafficPolicy healthCheckNodePort publishNotReadyAddresses ipFamilies ipFamilyPolicy"
        " allocateLoadBalancerNodePorts loadBalancerClass internalTrafficPolicy trafficDistribution",
        ports=_of("name protocol appProtocol port targetPort nodePort"),
        sessionAffinityConfig={"clientIP": _of("timeoutSeconds")},
    ),
    status=_of(
        "",
        loadBalancer={"ingress": _of("ip hostname ipMode", ports=_of("port protocol error"))},
        conditions=_CONDITION,
    ),
)

_ENDPOINT_PORT = _of("name port protocol appProtocol")

_ENDPOINT_SLICE = _object(
    "addressType",
    endpoints=_of(
        "addresses hostname deprecatedTopology nodeName zone",
        conditions=_of("ready serving terminating"),
        targetRef=_REFERENCE,
        hints=_of("", forZones=_NAMED, forNodes=_NAMED),
    ),
    ports=_ENDPOINT_PORT,
)

_ENDPOINT_ADDRESS = _of("ip hostname nodeName", targetRef=_REFERENCE)

_ENDPOINTS = _object(
    subsets=_of("", addresses=_ENDPOINT_ADDRESS, notReadyAddresses=_ENDPOINT_ADDRESS, ports=_ENDPOINT_PORT)
)

_CONFIG_SOURCE = _of("", configMap=_of("namespace name uid resourceVersion kubeletConfigKey"))

_NODE = _object(
    spec=_of(
        "podCIDR podCIDRs providerID unschedulable externalID",
        taints=_of("key value effect timeAdded"),
        configSource=_CONFIG_SOURCE,
    ),
    status=_of(
        "capacity allocatable phase volumesInUse declaredFeatures",
        conditions=_of("type status lastHeartbeatTime lastTransitionTime reason message"),
        addresses=_of("type address"),
        daemonEndpoints={"kubeletEndpoint": _of("Port")},
        nodeInfo=_of(
            "machineID systemUUID bootID kernelVersion osImage containerRuntimeVersion kubeletVersion kubeProxyVersion"
            " operatingSystem architecture",
            swap=_of("capacity"),
        ),
        images=_of("names sizeBytes"),
        volumesAttached=_of("name devicePath"),
        config=_of("error", assigned=_CONFIG_SOURCE, active=_CONFIG_SOURCE, lastKnownGood=_CONFIG_SOURCE),
        runtimeHandlers=_of("name", features=_of("recursiveReadOnlyMounts userNamespaces")),
        features=_of("supplementalGroupsPolicy"),
    ),
)

_SERVICE_CIDR = _object(spec=_of("cidrs"), status={"conditions": _CONDITION})

SCHEMAS: Final[Mapping[str, Schema]] = {
    "Service": _SERVICE,
    "EndpointSlice": _ENDPOINT_SLICE,
    "Endpoints": _ENDPOINTS,
    "Node": _NODE,
    "ServiceCIDR": _SERVICE_CIDR,
}
"""The fields of each kind."""
