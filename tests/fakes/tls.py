"""Certificates for the fake API server, made for the occasion."""

import ssl
from pathlib import Path

import trustme


class Authority:
    """A CA that signs the server's certificate and clients' certificates."""

    def __init__(self) -> None:
        self.ca = trustme.CA()
        self.pem = self.ca.cert_pem.bytes()

    def server_context(self, *names: str, clients: bool = False) -> ssl.SSLContext:
        """A server's TLS context for these names and addresses; with `clients`, it checks clients' certificates."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert(*(names or ("127.0.0.1", "localhost"))).configure_cert(context)
        if clients:
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(cadata=self.pem.decode())
        return context

    def client(self, user: str) -> tuple[bytes, bytes]:
        """A client's certificate and key as PEM."""
        made = self.ca.issue_cert(
            "client.invalid", common_name=user
        )  # strict X.509 wants a name beside the common one
        return made.cert_chain_pems[0].bytes(), made.private_key_pem.bytes()

    def write(self, folder: Path, user: str) -> tuple[Path, Path]:
        """Writes (or replaces) a client's certificate and key, and returns their paths."""
        paths = folder / f"{user}.crt", folder / f"{user}.key"
        for path, data in zip(paths, self.client(user), strict=True):
            new = path.with_suffix(".new")
            new.write_bytes(data)
            new.replace(path)
        return paths
