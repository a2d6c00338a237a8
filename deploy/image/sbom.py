"""The list of what an image is made of, as SPDX 2.3: each Debian package and each Python package, with version and hash."""

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from msgspec import Struct

from deploy.image.packages import SUITE, Package


class Wheel(Struct, frozen=True):
    """A Python package: its name, version and the SHA-256 of its file."""

    name: str
    version: str
    sha256: str


def document(name: str, packages: Sequence[Package], wheels: Sequence[Wheel], *, time: int) -> str:
    """The document.

    Args:
        name: the image's name with its tag and architecture.
        packages: its Debian packages.
        wheels: its Python packages.
        time: when it was made, in seconds of Unix time.
    """
    described = [
        _package(
            f"deb-{p.name}",
            p.name,
            p.version,
            p.sha256,
            f"pkg:deb/debian/{p.name}@{p.version}?arch={p.architecture}&distro={SUITE}",
        )
        for p in packages
    ]
    described += [
        _package(f"pypi-{w.name}", w.name, w.version, w.sha256, f"pkg:pypi/{w.name.lower()}@{w.version}")
        for w in wheels
    ]
    unique = uuid.uuid5(uuid.NAMESPACE_OID, name + "".join(str(p["checksums"]) for p in described))
    return json.dumps(
        {
            "spdxVersion": "SPDX-2.3",
            "dataLicense": "CC0-1.0",
            "SPDXID": "SPDXRef-DOCUMENT",
            "name": name,
            "documentNamespace": f"urn:uuid:{unique}",
            "creationInfo": {
                "created": datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "creators": ["Tool: kube-proxy-make-image"],
            },
            "packages": described,
            "relationships": [
                {
                    "spdxElementId": "SPDXRef-DOCUMENT",
                    "relationshipType": "DESCRIBES",
                    "relatedSpdxElement": p["SPDXID"],
                }
                for p in described
            ],
        },
        indent=1,
    )


def _package(ident: str, name: str, version: str, sha256: str, purl: str) -> dict[str, object]:
    allowed = "".join(c if c.isalnum() or c in "-." else "-" for c in ident)
    return {
        "SPDXID": f"SPDXRef-{allowed}",
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "checksums": [{"algorithm": "SHA256", "checksumValue": sha256}],
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": purl,
            }
        ],
    }
