"""Which proxy leads to the API server."""

import pytest

from kubeproxy.sources.proxies import proxy_for

PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("server", "env", "proxy"),
    [
        ("https://api", {}, None),
        ("https://api", {"HTTPS_PROXY": PROXY}, PROXY),
        ("https://api", {"https_proxy": PROXY}, PROXY),
        ("https://api", {"HTTPS_PROXY": "http://upper", "https_proxy": PROXY}, "http://upper"),
        ("https://api", {"HTTP_PROXY": PROXY}, None),
        ("http://api", {"HTTP_PROXY": PROXY}, PROXY),
        ("https://api", {"HTTPS_PROXY": "proxy:3128"}, PROXY),
        ("https://localhost:6443", {"HTTPS_PROXY": PROXY}, None),
        ("https://127.0.0.9", {"HTTPS_PROXY": PROXY}, None),
        ("https://[::1]:6443", {"HTTPS_PROXY": PROXY}, None),
    ],
)
def test_the_environment(server: str, env: dict[str, str], proxy: str | None) -> None:
    assert proxy_for(server, "", env) == proxy


@pytest.mark.parametrize(
    ("server", "no_proxy", "excepted"),
    [
        ("https://api.example.com", "*", True),
        ("https://api.example.com", "example.com", True),
        ("https://example.com", "example.com", True),
        ("https://api.example.com", ".example.com", True),
        ("https://example.com", ".example.com", False),
        ("https://api.example.com", "*.example.com", True),
        ("https://badexample.com", "example.com", False),
        ("https://API.example.com", "a, api.EXAMPLE.com ,", True),
        ("https://api:6443", "api:6443", True),
        ("https://api:6443", "api:443", False),
        ("https://api", "api:443", True),
        ("https://10.96.0.1", "10.96.0.0/12", True),
        ("https://10.96.0.1", "10.0.0.0/12,192.168.0.0/16", False),
        ("https://10.96.0.1", "10.96.0.1", True),
        ("https://10.96.0.1", "10.96.0.1:443", True),
        ("https://10.96.0.1", "96.0.1", False),
        ("https://10.96.0.1", "not/a/network,10.96.0.1", True),
        ("https://[fd00::1]:6443", "fd00::/8", True),
        ("https://[fd00::1]:6443", "fd00:0::1", True),
        ("https://[fd00::1]:6443", "[fd00::1]:6443", True),
        ("https://[fd00::1]:6443", "[fd00::1]:443", False),
        ("https://api", "", False),
    ],
)
def test_exceptions(server: str, no_proxy: str, excepted: bool) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        assert proxy_for(server, "", {"HTTPS_PROXY": PROXY, name: no_proxy}) == (None if excepted else PROXY)


def test_the_kubeconfig_wins_and_knows_no_exceptions() -> None:
    env = {"HTTPS_PROXY": "http://other", "NO_PROXY": "*"}
    assert proxy_for("https://localhost", PROXY, env) == PROXY


@pytest.mark.parametrize("proxy", ["socks5://proxy:1080", "https://proxy:3128", "http://"])
def test_other_proxies_are_refused(proxy: str) -> None:
    with pytest.raises(ValueError, match=r"^proxy-url: must be an http:// URL"):
        proxy_for("https://api", proxy, {})
    with pytest.raises(ValueError, match=r"^HTTPS_PROXY: must be an http:// URL"):
        proxy_for("https://api", "", {"HTTPS_PROXY": proxy})


def test_the_message_hides_the_password() -> None:
    with pytest.raises(ValueError, match="socks5://proxy") as e:
        proxy_for("https://api", "socks5://me:s3cret@proxy", {})
    assert "s3cret" not in str(e.value)
