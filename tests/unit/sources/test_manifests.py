"""Objects from real files in real folders, followed as they change."""

import asyncio
import contextlib
import errno
import json
import os
import shutil

import pytest

from kubeproxy.api import types
from kubeproxy.linux import inotify
from kubeproxy.sources import manifests
from kubeproxy.sources.documents import documents as read
from kubeproxy.sources.manifests import Manifests
from tests.unit.sources.manifest_files import BROKEN, Ear, follow, replace, service


class TestStart:
    async def test_everything_is_told_before_it_is_complete(self, tmp_path):
        (tmp_path / "a.yaml").write_text(service("a") + service("b"))
        (tmp_path / "b.yml").write_text(service("c", namespace="other"))
        (tmp_path / "c.json").write_text(json.dumps({"kind": "Node", "metadata": {"name": "n"}}))
        async with follow(tmp_path) as ear:
            assert ear.calls[:4] == [
                ("set", "Service", "shop", "a"),
                ("set", "Service", "shop", "b"),
                ("set", "Service", "other", "c"),
                ("set", "Node", "", "n"),
            ]
            assert sorted(ear.calls[4:]) == sorted(("complete", kind) for kind in types.KINDS)

    async def test_an_empty_folder_is_complete(self, tmp_path):
        async with follow(tmp_path) as ear:
            assert len(ear.calls) == len(types.KINDS)

    async def test_what_is_not_read(self, tmp_path):
        for name in ("a.txt", "a.yaml~", ".a.yaml", ".#a.yaml", "a.yaml.new", "yaml", "#a.yaml#"):
            (tmp_path / name).write_text(service("a"))
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "a.yaml").write_text(service("a"))
        (tmp_path / "folder.yaml").mkdir()
        (tmp_path / "dangling.yaml").symlink_to("none")
        os.mkfifo(tmp_path / "pipe.yaml")
        async with follow(tmp_path) as ear:
            assert not ear.said("set")

    async def test_files_may_have_any_name(self, tmp_path):
        for name in ("manifest", ".hidden.yaml"):
            (tmp_path / name).write_text(service(name.strip(".").split(".")[0]))
        async with follow(tmp_path / "manifest", tmp_path / ".hidden.yaml") as ear:
            assert ear.names("Service") == {"manifest", "hidden"}

    async def test_other_kinds_and_other_groups_are_nothing_to_us(self, tmp_path):
        knative = "---\napiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: k}\nspec: {template: {}}\n"
        deployment = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n"
        (tmp_path / "a.yaml").write_text(knative + service("a") + deployment)
        async with follow(tmp_path) as ear:
            assert [call for call in ear.calls if call[0] != "complete"] == [("set", "Service", "shop", "a")]

    async def test_lists(self, tmp_path):
        items = [{"metadata": {"name": f"s{i}"}, "spec": {"ports": [{"port": i}]}} for i in range(1, 2001)]
        (tmp_path / "a.json").write_text(
            json.dumps({"kind": "ServiceList", "apiVersion": "v1", "items": items})
        )
        async with follow(tmp_path) as ear:
            assert [ear.port(f"s{i}", "default") for i in range(1, 2001)] == list(range(1, 2001))

    def test_a_path_must_exist(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"^--manifests: .*none does not exist$"):
            Manifests([tmp_path, tmp_path / "none"], Ear())

    def test_a_path_must_be_a_file_or_a_folder(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match=r"^--manifests: .*pipe is neither a file nor a folder$"):
            Manifests([tmp_path / "pipe"], Ear())

    async def test_a_broken_file_harms_no_other(self, tmp_path, caplog):
        (tmp_path / "a.yaml").write_text(BROKEN)
        (tmp_path / "b.yaml").write_text(service("b"))
        (tmp_path / "c.yaml").symlink_to("/proc/self/mem")  # a file that cannot be read
        async with follow(tmp_path) as ear:
            assert ear.names("Service") == {"b"}
            assert (
                "a.yaml cannot be used, none of its objects is known: line 3, column 1: metadata.name[0]: while parsing"
                in caplog.text
            )
            assert "c.yaml cannot be used, none of its objects is known: [Errno" in caplog.text


class TestNamespaces:
    async def test_none_is_the_default_one(self, tmp_path):
        text = "kind: Service\nmetadata:\n  name: a\n  namespace:\n---\nkind: Node\nmetadata: {name: node, namespace: x}\n"
        (tmp_path / "a.yaml").write_text(text)
        async with follow(tmp_path) as ear:
            assert ear.view.keys() == {("Service", "default", "a"), ("Node", "", "node")}

    async def test_it_is_the_same_object_with_and_without_it(self, tmp_path):
        (tmp_path / "a.yaml").write_text(service("a", 1, namespace=""))
        (tmp_path / "b.yaml").write_text(service("a", 2, namespace="default"))
        async with follow(tmp_path) as ear:
            assert ear.port("a", "default") == 1
            (tmp_path / "a.yaml").unlink()
            await ear.until(lambda: ear.port("a", "default") == 2)
            assert not ear.said("gone")


class TestChanges:
    async def test_of_files(self, tmp_path):
        a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
        a.write_text(service("a"))
        async with follow(tmp_path) as ear:
            b.write_text(service("b"))
            await ear.names_are("a", "b")
            a.write_text(service("a", 81) + service("c"))
            await ear.until(lambda: ear.port("a") == 81)
            await ear.names_are("a", "b", "c")
            replace(a, service("c", 82))
            await ear.names_are("b", "c")
            assert ear.port("c") == 82
            b.unlink()
            await ear.names_are("c")
            shutil.move(a, tmp_path / "a.txt")
            await ear.names_are()

    async def test_only_what_changed_is_read(self, tmp_path):
        a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
        a.write_text(service("a"))
        b.write_text(service("b"))
        async with follow(tmp_path) as ear:
            await ear.has_seen_all(tmp_path)
            b.write_text(service("b", 81))
            assert set(await ear.has_seen_all(tmp_path)) == {("set", "Service", "shop", "b")}

    async def test_a_change_that_time_and_size_do_not_show(self, tmp_path):
        file = tmp_path / "a.yaml"
        file.write_text(service("a", 80))
        before = file.stat()
        async with follow(tmp_path) as ear:
            file.write_text(service("a", 81))
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            await ear.until(lambda: ear.port("a") == 81)

    async def test_a_renamed_file_is_not_missed_for_a_moment(self, tmp_path):
        (tmp_path / "m.yaml").write_text(service("a") + service("b"))
        async with follow(tmp_path) as ear:
            for name in ("a.yaml", "z.yml"):
                await ear.has_seen_all(tmp_path)
                next(f for f in tmp_path.iterdir() if "mark" not in f.name).rename(tmp_path / name)
                assert not [call for call in await ear.has_seen_all(tmp_path) if call[0] == "gone"]
            assert ear.names("Service") == {"a", "b", "mark"}

    async def test_a_config_map_volume(self, tmp_path):
        """The files are links into a folder that is replaced as a whole."""
        for version, text in (("..1", service("a", 1) + service("b")), ("..2", service("a", 2))):
            (tmp_path / version).mkdir()
            (tmp_path / version / "svc.yaml").write_text(text)
        (tmp_path / "..data").symlink_to("..1")
        (tmp_path / "svc.yaml").symlink_to("..data/svc.yaml")
        async with follow(tmp_path) as ear:
            assert ear.names("Service") == {"a", "b"}
            (tmp_path / "..data_tmp").symlink_to("..2")
            (tmp_path / "..data_tmp").rename(tmp_path / "..data")
            await ear.names_are("a")
            assert ear.port("a") == 2
            shutil.rmtree(tmp_path / "..1")
            await ear.has_seen_all(tmp_path)
            assert ear.port("a") == 2

    async def test_one_file(self, tmp_path):
        file = tmp_path / "a.yaml"
        file.write_text(service("a"))
        (tmp_path / "b.yaml").write_text(service("b"))
        async with follow(file) as ear:
            assert ear.names("Service") == {"a"}
            replace(file, service("a") + service("c"))
            await ear.names_are("a", "c")
            file.unlink()
            await ear.names_are()
            file.write_text(service("d"))
            await ear.names_are("d")

    async def test_a_file_named_twice_is_one(self, tmp_path, caplog):
        file = tmp_path / "a.yaml"
        file.write_text(service("a"))
        async with follow(tmp_path, file, tmp_path) as ear:
            assert ear.said("set") == [("set", "Service", "shop", "a")]
            file.unlink()
            await ear.names_are()
        assert "left out" not in caplog.text

    async def test_a_file_that_changes_all_the_time_holds_up_nobody(self, tmp_path, monkeypatch):
        busy = tmp_path / "a.yaml"
        busy.write_text("")
        (tmp_path / "b.yaml").write_text(service("b"))

        def documents(path):
            with busy.open("a") as log:
                log.write("# one more line\n")
            return read(path)

        monkeypatch.setattr(manifests, "documents", documents)
        async with follow(tmp_path) as ear:
            assert ear.names("Service") == {"b"}

    async def test_without_notifications(self, tmp_path, monkeypatch, caplog):
        @contextlib.contextmanager
        def none_left(folders, tell):
            raise OSError(errno.EMFILE, "Too many open files")
            yield

        monkeypatch.setattr(inotify, "changes", none_left)
        file = tmp_path / "a.yaml"
        file.write_text(service("a"))
        async with follow(tmp_path, look_seconds=0.02) as ear:
            file.write_text(service("a") + service("b"))
            await ear.names_are("a", "b")
            file.unlink()
            await ear.names_are()
        assert caplog.text.count("There are no notifications of changed files") == 1


async def test_it_ends_even_when_something_changes_at_that_moment(tmp_path, monkeypatch):
    told = []

    @contextlib.contextmanager
    def changes(folders, tell):
        told.append(tell)
        yield lambda: None

    monkeypatch.setattr(inotify, "changes", changes)
    ear = Ear()
    running = asyncio.ensure_future(Manifests([tmp_path], ear).run())
    await ear.until(lambda: len(ear.said("complete")) == len(types.KINDS))
    told[0]()
    running.cancel()
    await asyncio.wait([running], timeout=20)
    assert running.cancelled()
