"""TLS contexts from PEM."""

import ssl

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from kubeproxy.sources.tls import context
from tests.fakes.tls import Authority


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """Lets two contexts talk in memory; returns the server's side."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for end in ends:
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                pass
    return ends[1]


def test_the_cluster_authority_is_trusted_and_no_other(authority: Authority) -> None:
    server = authority.server_context("api.test")
    handshake(context(authority.pem, b"", b"", verify=True), server, "api.test")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(context(Authority().pem, b"", b"", verify=True), server, "api.test")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(context(b"", b"", b"", verify=True), server, "api.test")


def test_the_name_is_checked(authority: Authority) -> None:
    made = context(authority.pem, b"", b"", verify=True)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(made, authority.server_context("api.test"), "other.test")


def test_nothing_is_checked_if_told_so(authority: Authority) -> None:
    handshake(context(b"", b"", b"", verify=False), authority.server_context("api.test"), "other.test")


def test_an_intermediate_in_the_bundle_is_an_anchor() -> None:
    root = trustme.CA()
    middle = root.create_child_ca()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    middle.issue_cert("api.test").configure_cert(server)
    handshake(context(middle.cert_pem.bytes(), b"", b"", verify=True), server, "api.test")


def test_only_the_given_authority_is_loaded(authority: Authority) -> None:
    assert len(context(authority.pem, b"", b"", verify=True).get_ca_certs()) == 1


def test_old_cluster_authorities_are_not_held_to_strict_rules(authority: Authority) -> None:
    assert not context(authority.pem, b"", b"", verify=True).verify_flags & ssl.VERIFY_X509_STRICT


def test_a_client_certificate_is_shown(authority: Authority) -> None:
    made = context(authority.pem, *authority.client("proxy"), verify=True)
    peer = handshake(made, authority.server_context("api.test", clients=True), "api.test").getpeercert()
    assert peer is not None
    assert ((("commonName", "proxy"),)) in peer["subject"]


def test_certificate_without_final_newline(authority: Authority) -> None:
    certificate, key = authority.client("proxy")
    context(authority.pem, certificate.rstrip(), key, verify=True)


@pytest.mark.parametrize(
    "pem", [b"nonsense", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_bad_authority(pem: bytes) -> None:
    with pytest.raises(ValueError, match=r"^certificate-authority: not a PEM bundle"):
        context(pem, b"", b"", verify=True)


def test_a_pair_that_is_none(authority: Authority) -> None:
    certificate, _ = authority.client("a")
    _, key = authority.client("b")
    for pair in ((certificate, key), (certificate, b"nonsense"), (b"nonsense", key)):
        with pytest.raises(ValueError, match=r"^client-certificate and client-key: not a pair"):
            context(authority.pem, *pair, verify=True)


def test_an_encrypted_key_is_refused_without_asking_anybody(authority: Authority) -> None:
    certificate, plain = authority.client("a")
    key = serialization.load_pem_private_key(plain, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    with pytest.raises(ValueError, match=r"^client-certificate and client-key: not a pair"):
        context(authority.pem, certificate, key, verify=True)
