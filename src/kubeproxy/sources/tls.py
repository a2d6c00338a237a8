"""TLS contexts for the API server, made from bytes alone.

Certificates are in files, in the kubeconfig itself or from an exec plugin, and are passed here as PEM. If
there is a CA of the cluster, only that is trusted: the system's bundle would trust more and cost megabytes.
The rules are those of Go's crypto/tls where Python's defaults differ: the CA of some clusters lacks
extensions that RFC 5280 requires (Python 3.13 refuses them by default), and any certificate in the bundle is
a trust anchor.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl


def context(authority: bytes, certificate: bytes, key: bytes, *, verify: bool) -> "ssl.SSLContext":
    """Makes a client context.

    Args:
        authority: PEM bundle of the CAs to trust; empty means the system's bundle.
        certificate: PEM chain to show to the server, or empty.
        key: PEM private key of the certificate.
        verify: False to accept any certificate of the server.

    Raises:
        ValueError: something is not PEM, the key is encrypted or belongs to another certificate.
    """
    import ssl

    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.set_alpn_protocols(["http/1.1"])
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    elif authority:
        try:
            made.load_verify_locations(cadata=authority.decode("ascii"))
        except (ssl.SSLError, ValueError) as e:
            raise ValueError(f"certificate-authority: not a PEM bundle ({_text(e)})") from None
    else:
        made.load_default_certs()
    if certificate:
        try:
            with _as_file(certificate.rstrip() + b"\n" + key) as path:
                # The empty password makes an encrypted key an error; without it OpenSSL prompts at the
                # terminal.
                made.load_cert_chain(path, password="")
        except (ssl.SSLError, ValueError) as e:
            raise ValueError(f"client-certificate and client-key: not a pair in PEM ({_text(e)})") from None
    return made


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """OpenSSL loads key pairs from files only; on Linux the file need not touch a disk."""
    if sys.platform == "linux":
        with os.fdopen(os.memfd_create("keypair"), "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "keypair"
            path.write_bytes(data)
            yield str(path)


def _text(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)
