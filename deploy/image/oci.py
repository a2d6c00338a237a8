"""Writes an image for several architectures as an OCI archive: one tar file that podman, skopeo, containerd and Docker load.

The same files give the same bytes: members are in the order of their names, belong to root, and have one
time. See the OCI image specification (image-layout, image index, manifest, configuration, layer).
"""

import gzip
import hashlib
import io
import json
import stat
import tarfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

_MEDIA = "application/vnd.oci.image"


class Image(Struct, frozen=True):
    """An image of one architecture.

    Attributes:
        architecture: Go's name of it, "amd64" or "arm64".
        root: the folder that becomes its only layer.
        config: the `config` object of the image configuration: entry point, environment, labels.
    """

    architecture: str
    root: Path
    config: Mapping[str, Any]


class Blobs:
    """The blobs of a layout, by digest."""

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}

    def add(self, kind: str, data: bytes) -> dict[str, Any]:
        """Adds a blob; returns its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        self.found[digest] = data
        return {"mediaType": f"{_MEDIA}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}


def write(path: Path, name: str, images: Sequence[Image], *, time: int) -> dict[str, int]:
    """Writes an archive; returns the compressed bytes of each architecture.

    Args:
        path: the file to write.
        name: the image's name with its tag.
        images: one for each architecture.
        time: the time of all files, in seconds of Unix time.
    """
    blobs = Blobs()
    created = datetime.fromtimestamp(time, UTC).isoformat().replace("+00:00", "Z")
    manifests = []
    sizes = {}
    for image in images:
        layer = tarball(image.root, time)
        packed = blobs.add("layer.v1.tar+gzip", gzip.compress(layer, 9, mtime=0))
        sizes[image.architecture] = packed["size"]
        configuration = {
            "created": created,
            "architecture": image.architecture,
            "os": "linux",
            "config": image.config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
            "history": [{"created": created, "created_by": "make image"}],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": blobs.add("config.v1+json", _json(configuration)),
            "layers": [packed],
        }
        platform = {"architecture": image.architecture, "os": "linux"}
        manifests.append(blobs.add("manifest.v1+json", _json(manifest)) | {"platform": platform})
    index = {"schemaVersion": 2, "mediaType": f"{_MEDIA}.index.v1+json", "manifests": manifests}
    names = {"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name}
    top = blobs.add("index.v1+json", _json(index)) | {"annotations": names}
    files = {f"blobs/sha256/{digest}": data for digest, data in blobs.found.items()}
    files["index.json"] = _json({"schemaVersion": 2, "manifests": [top]})
    files["oci-layout"] = _json({"imageLayoutVersion": "1.0.0"})
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for member in sorted(files):
            info = tarfile.TarInfo(member)
            info.size, info.mtime, info.mode = len(files[member]), time, 0o644
            archive.addfile(info, io.BytesIO(files[member]))
    return sizes


def tarball(root: Path, time: int) -> bytes:
    """A folder as a tar archive: files of root, in the order of their names, with one time; files linked to each other stay so."""
    out = io.BytesIO()
    seen: dict[int, str] = {}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(root.rglob("*")):
            found = path.lstat()
            info = tarfile.TarInfo(str(path.relative_to(root)))
            info.mode, info.mtime = stat.S_IMODE(found.st_mode), time
            if (
                stat.S_ISREG(found.st_mode)
                and (first := seen.setdefault(found.st_ino, info.name)) != info.name
            ):
                info.type, info.linkname = tarfile.LNKTYPE, first
                archive.addfile(info)
            elif stat.S_ISLNK(found.st_mode):
                info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
                archive.addfile(info)
            elif stat.S_ISDIR(found.st_mode):
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = found.st_size
                with path.open("rb") as file:
                    archive.addfile(info, file)
    return out.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
