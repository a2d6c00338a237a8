"""Objects as an API server and as people write them, and what is said of those that do not decode."""

import json

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api import types

FROM_A_SERVER = {
    "Service": """
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  uid: 5a3d0a38-5f2b-4fd4-9b8a-0d6d2f7a4a11
  resourceVersion: "1842"
  generation: 3
  creationTimestamp: "2026-01-02T03:04:05Z"
  deletionTimestamp: null
  labels: {app: web, service.kubernetes.io/service-proxy-name: other}
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: '{"apiVersion":"v1","kind":"Service"}'
  finalizers: [service.kubernetes.io/load-balancer-cleanup]
  ownerReferences: [{apiVersion: v1, kind: Deployment, name: web, uid: "1", controller: true}]
  managedFields:
  - manager: kubectl
    operation: Apply
    apiVersion: v1
    time: "2026-01-02T03:04:05Z"
    fieldsType: FieldsV1
    fieldsV1: {"f:spec": {"f:ports": {'k:{"port":80,"protocol":"TCP"}': {".": {}, "f:port": {}}}}}
spec:
  type: LoadBalancer
  selector: {app: web}
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00::10"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: PreferDualStack
  externalIPs: [192.0.2.10]
  ports:
  - {name: http, protocol: TCP, appProtocol: http, port: 80, targetPort: web, nodePort: 30080}
  - {name: dns, protocol: UDP, port: 53, targetPort: 5353}
  loadBalancerSourceRanges: [203.0.113.0/25]
  loadBalancerClass: example.com/lb
  allocateLoadBalancerNodePorts: true
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 100}}
  externalTrafficPolicy: Local
  internalTrafficPolicy: Cluster
  trafficDistribution: PreferClose
  publishNotReadyAddresses: true
  healthCheckNodePort: 32000
status:
  loadBalancer:
    ingress:
    - {ip: 198.51.100.1, ipMode: VIP, ports: [{port: 80, protocol: TCP}]}
    - {hostname: lb.example.com}
  conditions: []
""",
    "EndpointSlice": """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-x7k2p
  namespace: shop
  labels:
    kubernetes.io/service-name: web
    endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
  annotations: {endpoints.kubernetes.io/last-change-trigger-time: "2026-01-02T03:04:05Z"}
addressType: IPv4
endpoints:
- addresses: [10.244.1.5]
  conditions: {ready: true, serving: true, terminating: false}
  hostname: web-0
  nodeName: node-1
  zone: a
  targetRef: {kind: Pod, name: web-0, namespace: shop, uid: "2"}
  deprecatedTopology: {x: y}
  hints: {forZones: [{name: a}], forNodes: [{name: node-1}]}
- addresses: [10.244.1.6]
  conditions: {}
ports:
- {name: http, port: 8080, protocol: TCP, appProtocol: http}
- {name: null, port: null, protocol: null}
""",
    "Endpoints": """
apiVersion: v1
kind: Endpoints
metadata: {name: web, namespace: shop}
subsets:
- addresses: [{ip: 10.244.1.5, nodeName: node-1, hostname: web-0, targetRef: {kind: Pod, name: web-0}}]
  notReadyAddresses: [{ip: 10.244.1.6}]
  ports: [{name: http, port: 8080}]
""",
    "Node": """
apiVersion: v1
kind: Node
metadata:
  name: node-1
  uid: "3"
  labels: {topology.kubernetes.io/zone: a, kubernetes.io/hostname: node-1}
spec:
  podCIDR: 10.244.1.0/24
  podCIDRs: [10.244.1.0/24, "fd00:1::/64"]
  providerID: kind://docker/node-1
  taints: [{key: node.kubernetes.io/unreachable, effect: NoSchedule, timeAdded: "2026-01-02T03:04:05Z"}]
status:
  addresses: [{type: InternalIP, address: 172.18.0.2}, {type: Hostname, address: node-1}]
  capacity: {cpu: "8", memory: 16Gi}
  conditions: [{type: Ready, status: "True"}]
  daemonEndpoints: {kubeletEndpoint: {Port: 10250}}
  images: [{names: [busybox], sizeBytes: 1234567890123}]
""",
    "ServiceCIDR": """
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16, "fd00:96::/108"]}
status: {conditions: [{type: Ready, status: "True"}]}
""",
}


@pytest.fixture(params=["decode", "convert"])
def read(request):
    """An object from its tree, as JSON from an API server and as decoded YAML from a file."""
    if request.param == "convert":
        return types.convert
    return lambda kind, tree: types.decode(kind, json.dumps(tree).encode())


def of_server(kind):
    return yaml.safe_load(FROM_A_SERVER[kind])


class TestWhatAServerSends:
    def test_service(self, read):
        service = read("Service", of_server("Service"))
        assert service.metadata == types.ObjectMeta(
            name="web",
            namespace="shop",
            uid="5a3d0a38-5f2b-4fd4-9b8a-0d6d2f7a4a11",
            resource_version="1842",
            labels=types.Labels(proxy_name="other"),
            annotations=types.Annotations(),
        )
        assert service.spec == types.ServiceSpec(
            ports=(
                types.ServicePort(80, "http", "TCP", 30080),
                types.ServicePort(53, "dns", "UDP"),
            ),
            type="LoadBalancer",
            cluster_ip="10.96.0.10",
            cluster_ips=("10.96.0.10", "fd00::10"),
            ip_families=("IPv4", "IPv6"),
            external_ips=("192.0.2.10",),
            load_balancer_source_ranges=("203.0.113.0/25",),
            session_affinity="ClientIP",
            session_affinity_config=types.SessionAffinityConfig(types.ClientIPConfig(100)),
            external_traffic_policy="Local",
            internal_traffic_policy="Cluster",
            health_check_node_port=32000,
        )
        assert service.status.load_balancer.ingress == (
            types.LoadBalancerIngress("198.51.100.1", "VIP"),
            types.LoadBalancerIngress(),
        )

    def test_endpoint_slice(self, read):
        piece = read("EndpointSlice", of_server("EndpointSlice"))
        assert piece.metadata.labels == types.Labels(service="web")
        assert piece.metadata.annotations == types.Annotations(triggered="2026-01-02T03:04:05Z")
        assert piece.address_type == "IPv4"
        assert piece.endpoints == (
            types.SliceEndpoint(
                ("10.244.1.5",),
                types.EndpointConditions(ready=True, serving=True, terminating=False),
                "node-1",
                "a",
                types.EndpointHints((types.Hint("a"),), (types.Hint("node-1"),)),
                types.TargetRef("Pod", "web-0"),
            ),
            types.SliceEndpoint(("10.244.1.6",), types.EndpointConditions()),
        )
        assert piece.ports == (types.EndpointPort("http", 8080, "TCP"), types.EndpointPort())

    def test_endpoints(self, read):
        endpoints = read("Endpoints", of_server("Endpoints"))
        assert endpoints.subsets == (
            types.EndpointSubset(
                (types.EndpointAddress("10.244.1.5", "node-1", types.TargetRef("Pod", "web-0")),),
                (types.EndpointAddress("10.244.1.6"),),
                (types.EndpointPort("http", 8080),),
            ),
        )

    def test_node(self, read):
        node = read("Node", of_server("Node"))
        assert node.metadata.labels == types.Labels(zone="a")
        assert node.spec == types.NodeSpec(
            "10.244.1.0/24",
            ("10.244.1.0/24", "fd00:1::/64"),
            (types.Taint("node.kubernetes.io/unreachable"),),
        )
        assert node.status.addresses == (
            types.NodeAddress("InternalIP", "172.18.0.2"),
            types.NodeAddress("Hostname", "node-1"),
        )

    def test_service_cidr(self, read):
        assert read("ServiceCIDR", of_server("ServiceCIDR")).spec.cidrs == ("10.96.0.0/16", "fd00:96::/108")


EMPTY = {
    "Service": ["spec.ports", "spec.clusterIPs", "spec.ipFamilies", "spec.externalIPs", "spec.loadBalancerSourceRanges",
                "spec.sessionAffinityConfig", "spec.sessionAffinityConfig.clientIP", "status", "status.loadBalancer",
                "status.loadBalancer.ingress", "spec.clusterIP", "spec.type", "spec.sessionAffinity",
                "spec.healthCheckNodePort", "spec.externalTrafficPolicy", "spec.internalTrafficPolicy"],
    "EndpointSlice": ["endpoints", "ports", "addressType"],
    "Endpoints": ["subsets"],
    "Node": ["spec", "status", "spec.podCIDR", "spec.podCIDRs", "spec.taints", "status.addresses"],
    "ServiceCIDR": ["spec", "spec.cidrs"],
}  # fmt: skip
EMPTY_META = ["namespace", "uid", "resourceVersion", "deletionTimestamp", "labels", "annotations"]


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (kind, path)
        for kind, paths in EMPTY.items()
        for path in [*paths, *(f"metadata.{field}" for field in EMPTY_META)]
    ],
)
def test_null_is_absent(read, kind, path):
    *parents, field = path.split(".")
    whole, without = of_server(kind), of_server(kind)
    _into(whole, parents)[field] = None
    _into(without, parents).pop(field, None)
    assert read(kind, whole) == read(kind, without)


def _into(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def test_null_in_lists_of_an_endpoint(read):
    endpoint = {
        "addresses": None,
        "conditions": None,
        "nodeName": None,
        "hints": {"forZones": None, "forNodes": None},
    }
    piece = read("EndpointSlice", {"metadata": {"name": "a"}, "endpoints": [endpoint, {"hints": None}]})
    assert piece.endpoints == (types.SliceEndpoint(hints=types.EndpointHints()), types.SliceEndpoint())


@pytest.mark.parametrize("kind", types.KINDS)
def test_the_least_object(read, kind):
    obj = read(kind, {"metadata": {"name": "a"}})
    assert type(obj).__name__ == kind
    assert obj.metadata == types.ObjectMeta("a")


@pytest.mark.parametrize("metadata", [{}, {"name": ""}, {"namespace": "shop", "uid": "1"}])
@pytest.mark.parametrize("kind", types.KINDS)
def test_an_object_without_a_name_is_refused(read, kind, metadata):
    with pytest.raises(types.UndecodableError) as caught:
        read(kind, {"metadata": metadata})
    assert (caught.value.kind, caught.value.name) == (kind, "(unnamed)")
    assert caught.value.reason == "metadata.name: is not set"


class TestUndecodable:
    @pytest.mark.parametrize(
        ("kind", "change", "reason"),
        [
            ("Service", {"spec": {"ports": [{"port": 80}, {"port": "http"}]}}, "spec.ports[1].port: Expected `int`, got `str`"),
            ("Service", {"spec": {"ports": [{"name": "a"}]}}, "spec.ports[0]: Object missing required field `port`"),
            ("Service", {"spec": {"ports": [None]}}, "spec.ports[0]: Expected `object`, got `null`"),
            ("Service", {"spec": {"ports": {"port": 80}}}, "spec.ports: Expected `array`, got `object`"),
            ("Service", {"spec": {"ports": [{"port": 80, "nodePort": 30080.5}]}}, "spec.ports[0].nodePort: Expected `int`, got `float`"),
            ("Service", {"spec": {"ports": [{"port": True}]}}, "spec.ports[0].port: Expected `int`, got `bool`"),
            ("Service", {"spec": {"ports": [{"port": 2**31}]}}, "spec.ports[0].port: Expected `int` <= 2147483647"),
            ("Service", {"spec": {"ports": [{"port": -(2**31) - 1}]}}, "spec.ports[0].port: Expected `int` >= -2147483648"),
            ("Service", {"spec": {"healthCheckNodePort": 10**30}}, "spec.healthCheckNodePort: Expected `int` <= 2147483647"),
            ("Service", {"spec": {"clusterIP": 10}}, "spec.clusterIP: Expected `str`, got `int`"),
            ("Service", {"spec": {"clusterIPs": "10.0.0.1"}}, "spec.clusterIPs: Expected `array`, got `str`"),
            ("Service", {"spec": []}, "spec: Expected `object`, got `array`"),
            ("Service", {"status": {"loadBalancer": {"ingress": [{"ip": 1}]}}}, "status.loadBalancer.ingress[0].ip: Expected `str`, got `int`"),
            ("EndpointSlice", {"endpoints": [{"addresses": [1]}]}, "endpoints[0].addresses[0]: Expected `str`, got `int`"),
            ("EndpointSlice", {"endpoints": [{"conditions": {"ready": "yes"}}]}, "endpoints[0].conditions.ready: Expected `bool`, got `str`"),
            ("EndpointSlice", {"ports": [{"port": "web"}]}, "ports[0].port: Expected `int`, got `str`"),
            ("Endpoints", {"subsets": [{"addresses": ["10.0.0.1"]}]}, "subsets[0].addresses[0]: Expected `object`, got `str`"),
            ("Node", {"spec": {"taints": ["x"]}}, "spec.taints[0]: Expected `object`, got `str`"),
            ("ServiceCIDR", {"spec": {"cidrs": "10.0.0.0/8"}}, "spec.cidrs: Expected `array`, got `str`"),
        ],
    )  # fmt: skip
    def test_names_the_object_and_the_field(self, read, kind, change, reason):
        with pytest.raises(types.UndecodableError) as caught:
            read(kind, {"metadata": {"name": "web", "namespace": "shop"}, **change})
        error = caught.value
        assert (error.kind, error.name) == (kind, "shop/web")
        assert error.reason.replace(" | null", "") == reason
        assert str(error) == f"{kind} shop/web: {error.reason}"

    @pytest.mark.parametrize(
        ("metadata", "name"),
        [
            ({"name": "web", "namespace": "shop"}, "shop/web"),
            ({"name": "web"}, "web"),
            ({"namespace": "shop"}, "shop/(unnamed)"),
            ({}, "(unnamed)"),
            (None, "(unnamed)"),
            ([], "(unnamed)"),
            ("web", "(unnamed)"),
            ({"name": 5, "namespace": {"a": 1}}, "(unnamed)"),
            ({"name": "web", "namespace": ["shop"]}, "web"),
            ({"name": "a\nE0101 all is lost"}, r"'a\nE0101 all is lost'"),
        ],
    )
    def test_names_what_can_be_named(self, read, metadata, name):
        with pytest.raises(types.UndecodableError) as caught:
            read("Service", {"metadata": metadata, "spec": 1})
        assert caught.value.name == name

    def test_a_long_name_is_cut(self, read):
        with pytest.raises(types.UndecodableError) as caught:
            read("Service", {"metadata": {"name": "a" * 10**6}, "spec": 1})
        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize(
        "data",
        [
            b"", b" ", b"null", b"[]", b"1", b'"x"', b"{", b"{}", b"}", b"\xff\xfe", b"\x00", b"apiVersion: v1",
            b'{"metadata": {"name": "a"}', b'{"metadata": {"name": "a"}} x', b'{"metadata": {"name": "\xff"}}',
            b'{"metadata": {"name": "\\ud800"}}', b'{"metadata": {"name": "a"}, "spec": NaN}',
            b'{"metadata": {"name": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        ],
        ids=range(18),
    )  # fmt: skip
    def test_bytes_that_are_no_object(self, data):
        with pytest.raises(types.UndecodableError) as caught:
            types.decode("Service", data)
        assert caught.value.reason

    def test_a_number_that_is_too_long_to_be_read(self):
        with pytest.raises(types.UndecodableError) as caught:
            types.decode(
                "Service", b'{"metadata":{"name":"a"},"spec":{"ports":[{"port":%s}]}}' % (b"9" * 5000)
            )
        assert str(caught.value) == "Service a: spec.ports[0].port: Integer value out of range"

    def test_a_number_that_is_too_long_to_be_written(self):
        with pytest.raises(
            types.UndecodableError, match=r"^Service a: spec\.ports\[0\]\.port: Expected `int` <="
        ):
            types.convert("Service", {"metadata": {"name": "a"}, "spec": {"ports": [{"port": 16**6000}]}})

    def test_a_key_that_is_no_text(self):
        with pytest.raises(types.UndecodableError, match=r"^Service a: metadata: Expected `str`$"):
            types.convert("Service", {"metadata": {"name": "a", 1: 2}})

    def test_a_tree_that_is_too_deep(self):
        tree: object = "x"
        for _ in range(100_000):
            tree = [tree]
        with pytest.raises(types.UndecodableError, match=r"^Service a: nested too deeply$"):
            types.convert("Service", {"metadata": {"name": "a", "x": tree}})

    def test_a_tree_that_holds_itself(self):
        """As YAML's aliases can make it."""
        tree: dict[str, object] = {"metadata": {"name": "a"}, "x": None}
        tree["x"] = [tree, tree]
        assert types.convert("Service", tree) == types.Service(types.ObjectMeta(name="a"))

    def test_a_tree_that_would_not_fit_into_memory(self):
        tree: object = "x"
        for _ in range(100):
            tree = [tree] * 10
        assert types.convert("Service", {"metadata": {"name": "a"}, "x": tree}).metadata.name == "a"

    @given(
        st.sampled_from(list(types.KINDS)),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["metadata", "name", "spec", "ports", "status", "endpoints", "addresses", "subsets"]
                    ),
                    inner,
                    max_size=4,
                )
            ),
        ),
    )
    def test_anything_is_an_object_or_undecodable(self, kind, tree):
        found: list[object] = []
        for read in (types.convert, lambda kind, tree: types.decode(kind, msgspec.json.encode(tree))):
            try:
                found.append(read(kind, tree))
            except types.UndecodableError as e:
                found.append((e.kind, e.name))
        assert found[0] == found[1]


def test_names_in_a_row():
    assert types.listed(["a"], 5) == "a"
    assert types.listed("abcde", 5) == "a, b, c, d, e"
    assert types.listed("abcdefg", 2) == "a, b and 5 more"
