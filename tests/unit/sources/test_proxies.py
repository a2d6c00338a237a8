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
        ("https://api", {"HTTPS_PROXY": "https://proxy:3128"}, "https://proxy:3128"),
        ("https://api", {"ALL_PROXY": PROXY}, None),
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
        (
            "https://10.96.0.1",
            "96.0.1",
            True,
        ),  # an entry that is no address is a domain, whose suffix is compared
        ("https://10.96.0.1", "not/a/network,10.96.0.1", True),
        ("https://[fd00::1]:6443", "fd00::/8", True),
        ("https://[fd00::1]:6443", "fd00:0::1", True),
        ("https://[fd00::1]:6443", "[fd00::1]:6443", True),
        ("https://[fd00::1]:6443", "[fd00::1]:443", False),
        ("https://api", "", False),
        ("https://api", ":443", False),
        ("https://api", "a,*", True),
        ("https://api", ".", False),
        ("https://api.b", "*b", False),
        ("https://10.96.0.1", "10.96.0.1:6443", False),
        ("https://10.96.0.1", "10.96.0.0/33", False),
        ("https://[fd00::1]:6443", "[fd00::1]", False),
    ],
)
def test_exceptions(server: str, no_proxy: str, excepted: bool) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        assert proxy_for(server, "", {"HTTPS_PROXY": PROXY, name: no_proxy}) == (None if excepted else PROXY)


def test_the_kubeconfig_wins_and_knows_no_exceptions() -> None:
    env = {"HTTPS_PROXY": "http://other", "NO_PROXY": "*"}
    assert proxy_for("https://localhost", PROXY, env) == PROXY


OTHERS = [
    "socks5://proxy:1080",
    "socks5h://proxy",
    "http://",
    "ftp://proxy",
    "http://proxy:x",
    "http://proxy:99999",
    "http://[::1",
]


@pytest.mark.parametrize("proxy", OTHERS)
def test_others_are_refused_in_a_kubeconfig(proxy: str) -> None:
    with pytest.raises(ValueError, match=r"^proxy-url: must be an http:// or https:// URL"):
        proxy_for("https://api", proxy, {})


@pytest.mark.parametrize("proxy", OTHERS)
def test_others_are_left_out_of_the_environment_with_a_warning(proxy: str) -> None:
    said: list[str] = []
    assert proxy_for("https://api", "", {"HTTPS_PROXY": proxy}, said.append) is None
    assert said == [
        f'HTTPS_PROXY: must be an http:// or https:// URL, "{proxy}" is not supported: the API server is connected to directly'
    ]
    said.clear()
    assert proxy_for("https://api", "", {"HTTPS_PROXY": proxy, "NO_PROXY": "api"}, said.append) is None
    assert proxy_for("http://api", "", {"HTTPS_PROXY": proxy}, said.append) is None
    assert said == [], "it would not be used"


def test_the_message_hides_the_password() -> None:
    with pytest.raises(ValueError, match="socks5://proxy") as e:
        proxy_for("https://api", "socks5://me:s3cret@proxy", {})
    assert "s3cret" not in str(e.value)
    said: list[str] = []
    proxy_for("https://api", "", {"https_proxy": "socks5://me:s3cret@proxy"}, said.append)
    assert "s3cret" not in said[0]
