"""Manifests in real folders and an ear for what is said of them, for the tests of the source."""

import asyncio
import contextlib

from kubeproxy.api import types
from kubeproxy.sources.manifests import Manifests
from tests.fakes.sink import Recorder

BROKEN = "kind: Service\nmetadata: {name: [\n"


def service(name, port=80, namespace="shop"):
    return f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{ports: [{{port: {port}}}]}}\n"


def undecodable(name):
    return f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: http}}]}}\n"


def replace(file, text):
    """Writes a file as careful programs do."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text)
    new.rename(file)


class Ear(Recorder):
    """Hears, and can wait until all that was changed so far has been seen."""

    source: Manifests
    asked: list[bool]
    marks = 0

    def port(self, name, namespace="shop"):
        """The number of a Service's port; 0 if there is no such Service."""
        obj = self.view.get(("Service", namespace, name))
        return obj.spec.ports[0].port if isinstance(obj, types.Service) and obj.spec.ports else 0

    async def names_are(self, *names):
        await self.until(lambda: self.names("Service") == set(names))

    async def has_seen_all(self, folder):
        """Nothing more is to be heard of what was done before."""
        self.marks += 1
        mark = folder / "zz-mark.yaml"
        replace(mark, service("mark", self.marks))
        await self.until(lambda: self.port("mark") == self.marks)
        calls = [call for call in self.calls if call[-1] != "mark"]
        self.calls.clear()
        return calls


@contextlib.asynccontextmanager
async def follow(*paths, look_seconds=3600):
    """Runs the source until the first list of everything is complete, and beyond.

    Unless a test says otherwise, what is found is found because the kernel told of it.
    """
    ear = Ear()
    ear.source = Manifests(paths, ear, look_seconds=look_seconds)
    running = asyncio.ensure_future(ear.source.run())
    try:
        await ear.until(lambda: running.done() or len(ear.said("complete")) == len(types.KINDS))
        yield ear
        assert not running.done(), running.exception()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
