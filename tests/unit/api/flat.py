"""What the tests of flattening share: objects as people write them, made rows."""

from kubeproxy.api import flatten, types
from kubeproxy.api.rows import ServiceRow

ALL = 3  # ready and serving


class Complaints(dict[str, str]):
    """What was complained of, by field; a field is complained of once."""

    def __call__(self, field, message):
        assert field not in self, f"{field} was complained of twice: {self[field]}, {message}"
        assert message
        self[field] = message


def flat(kind, tree):
    """The rows of an object, and the complaints."""
    complaints = Complaints()
    function = {"EndpointSlice": "endpoint_slice", "ServiceCIDR": "service_cidr"}.get(kind, kind.lower())
    return getattr(flatten, function)(types.convert(kind, tree), complaints), complaints


def service(spec, status=None, **metadata):
    """A Service as given, with what it needs to be one of ours."""
    tree = {
        "metadata": {"name": "web", "namespace": "shop", **metadata},
        "spec": {"clusterIP": "10.96.0.10", **spec},
        "status": status,
    }
    return flat("Service", tree)


def row(**fields):
    """The row of `service` with these fields."""
    return ServiceRow(
        **{"namespace": "shop", "name": "web", "cluster_ips": ("10.96.0.10",), "ports": (), **fields}
    )


def endpoint_slice(spec, **metadata):
    """An EndpointSlice as given, of the Service shop/web."""
    labels = {"kubernetes.io/service-name": "web"}
    tree = {"metadata": {"name": "web-x", "namespace": "shop", "labels": labels, **metadata}, **spec}
    return flat("EndpointSlice", tree)


def ingress(*entries):
    return {"loadBalancer": {"ingress": list(entries)}}
