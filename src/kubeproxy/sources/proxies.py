"""Which HTTP proxy leads to the API server, by the rules of Go's net/http and client-go.

The cluster's own `proxy-url` wins; else HTTPS_PROXY or HTTP_PROXY (upper case first) unless NO_PROXY excepts the
server: by name, `.domain`, address, network or `*`, each with an optional port. Loopback is never proxied by the
environment. Python's own reading of these variables knows no networks, therefore this one.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit


def proxy_for(server: str, proxy_url: str, env: Mapping[str, str]) -> str | None:
    """Finds the proxy for a server.

    Args:
        server: the API server's URL.
        proxy_url: proxy-url of the kubeconfig's cluster, or empty.
        env: the process's environment.

    Raises:
        ValueError: the proxy is not one we can speak to; the message names where it was set.
    """
    if proxy_url:
        return _checked(proxy_url, "proxy-url")
    target = urlsplit(server)
    for name in ("HTTPS_PROXY", "https_proxy") if target.scheme == "https" else ("HTTP_PROXY", "http_proxy"):
        if env.get(name):
            port = target.port or (443 if target.scheme == "https" else 80)
            excepted = env.get("NO_PROXY") or env.get("no_proxy") or ""
            if _excepted(target.hostname or "", port, excepted):
                return None
            return _checked(env[name], name)
    return None


def _checked(proxy: str, where: str) -> str:
    url = proxy if "://" in proxy else f"http://{proxy}"
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f'{where}: must be an http:// URL, "{_without_password(url)}" is not supported')
    return url


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _excepted(host: str, port: int, exceptions: str) -> bool:
    import ipaddress

    host = host.lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or (address and address.is_loopback):
        return True
    for word in exceptions.lower().split(","):
        item = word.strip()
        if item == "*":
            return True
        if not item:
            continue
        if address and "/" in item:
            try:
                if address in ipaddress.ip_network(item, strict=False):
                    return True
            except ValueError:
                pass
            continue
        name, only = _split_port(item)
        if only and only != str(port):
            continue
        if address:
            try:
                if ipaddress.ip_address(name) == address:
                    return True
            except ValueError:
                pass
        elif host == name or host.endswith(f".{name.removeprefix('*').removeprefix('.')}"):
            return True
    return False


def _split_port(item: str) -> tuple[str, str]:
    """Splits `name:port`, `1.2.3.4:port` and `[::1]:port`; a bare IPv6 address has no port."""
    if item.startswith("["):
        name, _, port = item[1:].partition("]")
        return name, port.removeprefix(":")
    if item.count(":") == 1:
        name, _, port = item.partition(":")
        return name, port
    return item, ""
