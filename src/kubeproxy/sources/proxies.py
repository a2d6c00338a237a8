"""Which HTTP proxy leads to the API server, by the rules of Go's net/http and client-go.

The cluster's `proxy-url` takes precedence; else HTTPS_PROXY or HTTP_PROXY (upper case first) unless NO_PROXY
excepts the server. The environment's proxy is never used for loopback. Python's own support of these
variables lacks networks, so it is not used. A proxy in the kubeconfig that cannot be used is an error,
because it was configured for this cluster; one in the environment, which is often that of the whole machine,
is ignored with a warning.

Source: golang.org/x/net/http/httpproxy, whose documentation gives the rules of NO_PROXY.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address


def proxy_for(
    server: str, proxy_url: str, env: Mapping[str, str], complain: Callable[[str], None] = lambda _: None
) -> str | None:
    """Finds the proxy for a server.

    Args:
        server: the API server's URL.
        proxy_url: proxy-url of the kubeconfig's cluster, or empty.
        env: the process's environment.
        complain: called with a message if a proxy in the environment cannot be used.

    Raises:
        ValueError: proxy-url is not a supported proxy.
    """
    if proxy_url:
        return _checked(proxy_url, "proxy-url")
    target = urlsplit(server)
    for name in ("HTTPS_PROXY", "https_proxy") if target.scheme == "https" else ("HTTP_PROXY", "http_proxy"):
        if env.get(name):
            port = target.port or (443 if target.scheme == "https" else 80)
            exceptions = env.get("NO_PROXY") or env.get("no_proxy") or ""
            if _is_excepted(target.hostname or "", str(port), exceptions):
                return None
            try:
                return _checked(env[name], name)
            except ValueError as e:
                complain(f"{e}: the API server is connected to directly")
                return None
    return None


def _checked(proxy: str, where: str) -> str:
    url = proxy if "://" in proxy else f"http://{proxy}"
    parts = _split(url)
    if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(
            f'{where}: must be an http:// or https:// URL, "{_without_password(url)}" is not supported'
        )
    return url


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError:
        return None
    return parts


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _is_excepted(host: str, port: str, exceptions: str) -> bool:
    """Whether NO_PROXY, or being this machine, excepts a host in lower case."""
    address = _address(host)
    if host == "localhost" or (address and address.is_loopback):
        return True
    items = [item.strip().lower() for item in exceptions.split(",")]
    return "*" in items or any(_matches(item, host, port, address) for item in items if item)


def _matches(item: str, host: str, port: str, address: "IPv4Address | IPv6Address | None") -> bool:
    """Whether one entry matches a host: a network, or an address or a domain with or without a port."""
    from ipaddress import ip_network

    if "/" in item:
        try:
            return address is not None and address in ip_network(item, strict=False)
        except ValueError:
            return False
    name, only = _split_port(item)
    if not name or only not in {"", port}:
        return False
    if (excepted := _address(name)) is not None:
        return excepted == address
    suffix = name.removeprefix("*")
    if suffix.startswith("."):
        return host.endswith(suffix)
    return host == name or host.endswith(f".{name}")


def _address(text: str) -> "IPv4Address | IPv6Address | None":
    from ipaddress import ip_address

    try:
        return ip_address(text)
    except ValueError:
        return None


def _split_port(item: str) -> tuple[str, str]:
    """Splits `name:port`, `1.2.3.4:port` and `[::1]:port`; anything else has no port."""
    if item.startswith("["):
        name, bracket, port = item[1:].partition("]:")
        return (name, port) if bracket else (item, "")
    if item.count(":") == 1:
        name, _, port = item.partition(":")
        return name, port
    return item, ""
