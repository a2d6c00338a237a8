"""Objects from real files in real folders, followed as they change."""

import asyncio
import contextlib
import errno
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api import types
from kubeproxy.linux import inotify
from kubeproxy.sources import manifests
from kubeproxy.sources.documents import documents as read
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


@pytest.fixture(autouse=True)
def only_when_told(monkeypatch):
    """What is found is found because the kernel told of it, unless a test says otherwise."""
    monkeypatch.setattr(manifests, "LOOK_SECONDS", 3600)


@pytest.fixture
def often(monkeypatch):
    """It is looked often."""
    monkeypatch.setattr(manifests, "LOOK_SECONDS", 0.02)


class Ear(Recorder):
    """Hears, and can wait until all that was changed so far has been seen."""

    def port(self, name, namespace="shop"):
        """The number of a Service's port; 0 if there is no such Service."""
        obj = self.view.get(("Service", namespace, name))
        return obj.spec.ports[0].port if isinstance(obj, types.Service) and obj.spec.ports else 0

    async def names_are(self, *names):
        await self.until(lambda: self.names("Service") == set(names))

    async def has_seen_all(self, folder):
        """Nothing more is to be heard of what was done before."""
        self.marks = getattr(self, "marks", 0) + 1
        mark = folder / "zz-mark.yaml"
        replace(mark, service("mark", self.marks))
        await self.until(lambda: self.port("mark") == self.marks)
        calls = [call for call in self.calls if call[-1] != "mark"]
        self.calls.clear()
        return calls


@contextlib.asynccontextmanager
async def follow(*paths):
    """Runs the source until the first list of everything is complete, and beyond."""
    ear = Ear()
    running = asyncio.ensure_future(Manifests(paths, ear).run())
    try:
        await ear.until(lambda: running.done() or len(ear.said("complete")) == len(types.KINDS))
        yield ear
        assert not running.done(), running.exception()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


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
            assert "a.yaml cannot be used, its last good state stays: while parsing" in caplog.text
            assert "c.yaml cannot be used, its last good state stays: [Errno" in caplog.text


class TestNamespaces:
    async def test_none_is_the_default_one(self, tmp_path):
        text = "kind: Service\nmetadata:\n  name: a\n  namespace:\n---\nkind: Node\nmetadata: {name: n, namespace: x}\n"
        (tmp_path / "a.yaml").write_text(text)
        async with follow(tmp_path) as ear:
            assert ear.view.keys() == {("Service", "default", "a"), ("Node", "", "n")}

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

    @pytest.mark.usefixtures("often")
    async def test_without_notifications(self, tmp_path, monkeypatch, caplog):
        @contextlib.contextmanager
        def none_left(folders, tell):
            raise OSError(errno.EMFILE, "Too many open files")
            yield

        monkeypatch.setattr(inotify, "changes", none_left)
        file = tmp_path / "a.yaml"
        file.write_text(service("a"))
        async with follow(tmp_path) as ear:
            file.write_text(service("a") + service("b"))
            await ear.names_are("a", "b")
            file.unlink()
            await ear.names_are()
        assert caplog.text.count("No notifications of changed files") == 1


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


class TestLastGoodState:
    async def test_of_a_file_that_is_broken_for_a_while(self, tmp_path, caplog):
        file = tmp_path / "a.yaml"
        file.write_text(service("a"))
        async with follow(tmp_path) as ear:
            await ear.has_seen_all(tmp_path)
            replace(file, service("a", 81) + BROKEN)
            for _ in range(3):
                assert await ear.has_seen_all(tmp_path) == []
            assert ear.port("a") == 80
            assert caplog.text.count("a.yaml cannot be used, its last good state stays") == 1
            replace(file, service("b"))
            await ear.names_are("b", "mark")

    async def test_of_an_object_that_does_not_decode(self, tmp_path):
        file = tmp_path / "a.yaml"
        file.write_text(service("a") + service("b"))
        async with follow(tmp_path) as ear:
            replace(file, undecodable("a") + service("b", 81) + undecodable("c"))
            await ear.until(lambda: ear.port("b") == 81)
            assert ear.port("a") == 80
            assert not ear.said("gone")
            assert sorted(call[1:3] for call in ear.said("refused")) == [
                ("Service", "shop/a in a.yaml"),
                ("Service", "shop/c in a.yaml"),
            ]
            assert all("spec.ports[0].port" in call[3] for call in ear.said("refused"))
            replace(file, service("a", 82) + service("b", 81) + service("c"))
            await ear.names_are("a", "b", "c")
            assert ear.port("a") == 82

    async def test_it_ends_when_the_object_is_not_there_any_more(self, tmp_path):
        file = tmp_path / "a.yaml"
        file.write_text(service("a") + service("b"))
        async with follow(tmp_path) as ear:
            replace(file, undecodable("a") + service("b", 81))
            await ear.until(lambda: ear.port("b") == 81)
            replace(file, service("b", 82))
            await ear.names_are("b")

    async def test_of_an_empty_file(self, tmp_path, caplog):
        """It is about to be written."""
        file = tmp_path / "a.yaml"
        file.write_text(service("a"))
        async with follow(tmp_path) as ear:
            await ear.has_seen_all(tmp_path)
            replace(file, "")
            assert await ear.has_seen_all(tmp_path) == []
            assert "a.yaml is empty, its last good state stays" in caplog.text
            replace(file, "# nothing\n")
            await ear.names_are("mark")

    async def test_of_a_file_that_cannot_be_looked_at(self, tmp_path):
        file = tmp_path / "a.yaml"
        file.write_text(service("a"))
        async with follow(tmp_path) as ear:
            await ear.has_seen_all(tmp_path)
            (tmp_path / "loop").symlink_to("a.yaml")
            (tmp_path / "loop").rename(file)  # a link to itself
            assert await ear.has_seen_all(tmp_path) == []
            file.unlink()
            await ear.names_are("mark")

    @pytest.mark.usefixtures("often")
    async def test_of_a_folder_that_goes_and_comes_back(self, tmp_path, caplog):
        folder, other = tmp_path / "here", tmp_path / "other"
        for made in (folder, other):
            made.mkdir()
        (folder / "a.yaml").write_text(service("a"))
        (folder / "b.yaml").write_text(service("b"))
        async with follow(folder, other) as ear:
            folder.rename(tmp_path / "away")
            await ear.has_seen_all(other)
            assert await ear.has_seen_all(other) == []
            assert caplog.text.count("here cannot be listed, its last state stays") == 1
            folder.mkdir()
            (folder / "a.yaml").write_text(service("a", 81))
            await ear.names_are("a", "mark")
            assert ear.port("a") == 81
            shutil.rmtree(folder)
            await ear.until(lambda: caplog.text.count("here cannot be listed") == 2)
            assert ear.port("a") == 81

    async def test_a_folder_that_came_back_is_watched(self, tmp_path, monkeypatch):
        folder = tmp_path / "here"
        folder.mkdir()
        (folder / "a.yaml").write_text(service("a"))
        monkeypatch.setattr(manifests, "LOOK_SECONDS", 0.02)
        async with follow(folder) as ear:
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / "a.yaml").write_text(service("a", 81))
            await ear.until(lambda: ear.port("a") == 81)
            monkeypatch.setattr(manifests, "LOOK_SECONDS", 3600)
            for port in (82, 83):  # the first may still be found by looking
                replace(folder / "a.yaml", service("a", port))
                await ear.until(lambda port=port: ear.port("a") == port)

    @pytest.mark.usefixtures("often")
    async def test_of_a_folder_that_cannot_be_listed(self, tmp_path, monkeypatch, caplog):
        file = tmp_path / "a.yaml"
        file.write_text(service("a"))
        fails = True
        listed = Path.iterdir

        def iterdir(path):
            if fails and path == tmp_path:
                raise OSError(errno.EIO, "Input/output error")
            return listed(path)

        async with follow(tmp_path) as ear:
            monkeypatch.setattr(Path, "iterdir", iterdir)
            await ear.until(lambda: "cannot be listed, its last state stays: [Errno 5]" in caplog.text)
            file.write_text(service("a", 81))  # what we know of can still be read
            await ear.until(lambda: ear.port("a") == 81)
            assert not ear.said("gone")
            fails = False
            file.unlink()
            await ear.names_are()


class TestOneObjectInManyFiles:
    async def test_the_first_counts(self, tmp_path, caplog):
        a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
        a.write_text(service("x", 1))
        b.write_text(service("x", 2) + service("y"))
        async with follow(tmp_path) as ear:
            assert ear.port("x") == 1
            assert ear.names("Service") == {"x", "y"}
            replace(b, service("x", 3) + service("y"))
            await ear.has_seen_all(tmp_path)
            assert ear.port("x") == 1
            assert caplog.text.count("left out") == 1
            assert f"Service shop/x of {b} is left out: it is in {a}, too" in caplog.text

    async def test_the_second_takes_over(self, tmp_path):
        a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
        a.write_text(service("x", 1) + service("y"))
        b.write_text(service("x", 2))
        async with follow(tmp_path) as ear:
            replace(a, service("y"))
            await ear.until(lambda: ear.port("x") == 2)
            replace(a, service("y") + service("x", 3))
            replace(b, service("x", 4))
            await ear.until(lambda: ear.port("x") == 4)
            b.unlink()
            await ear.until(lambda: ear.port("x") == 3)
            assert not ear.said("gone")
            a.unlink()
            await ear.names_are()

    async def test_the_second_takes_over_with_its_last_good_state(self, tmp_path):
        a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
        a.write_text(service("x", 1))
        b.write_text(service("x", 2))
        async with follow(tmp_path) as ear:
            replace(b, BROKEN)
            await ear.has_seen_all(tmp_path)
            a.unlink()
            await ear.until(lambda: ear.port("x") == 2)
            assert not ear.said("gone")

    async def test_a_copy_that_went_takes_nothing_over(self, tmp_path):
        a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
        a.write_text(service("x", 1))
        b.write_text(service("x", 2))
        async with follow(tmp_path) as ear:
            b.unlink()
            await ear.has_seen_all(tmp_path)
            a.unlink()
            await ear.names_are("mark")

    @pytest.mark.parametrize(("giver", "taker"), [("a", "b"), ("b", "a")])
    async def test_it_moves_to_another_file_without_a_moment_in_between(self, tmp_path, caplog, giver, taker):
        folder, new = tmp_path / "here", tmp_path / "new"
        for made in (folder, new):
            made.mkdir()
        for file, names in ((giver, "xy"), (taker, "z")):
            (folder / f"{file}.yaml").write_text("".join(map(service, names)))
        for file, names in ((giver, "y"), (taker, "zx")):
            (new / f"{file}.yaml").write_text("".join(service(name, 81) for name in names))
        ear = Ear()
        source = Manifests([folder], ear)
        await source._look()
        for file in new.iterdir():
            file.rename(folder / file.name)
        await source._look()
        assert [ear.port(name) for name in "xyz"] == [81, 81, 81]
        assert not ear.said("gone")
        assert "left out" not in caplog.text

    async def test_twice_in_one_file(self, tmp_path, caplog):
        (tmp_path / "a.yaml").write_text(service("x", 1) + service("x", 2))
        async with follow(tmp_path) as ear:
            assert ear.port("x") == 2
            assert "Service shop/x stands in" in caplog.text


FILES = ("a.yaml", "b.yaml", "c.json")
held = st.lists(st.sampled_from("xyz"), max_size=3, unique=True)
actions = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(FILES), held),
    st.tuples(st.just("break"), st.sampled_from(FILES), st.none()),
    st.tuples(st.just("remove"), st.sampled_from(FILES), st.none()),
    st.tuples(st.just("rename"), st.sampled_from(FILES), st.sampled_from(FILES)),
)
histories = st.lists(st.lists(actions, min_size=1, max_size=3), min_size=2, max_size=12)


@given(histories)
async def test_what_is_known_is_what_the_files_held_when_they_were_last_good(history):
    """Whatever is done to files between two looks at them."""
    folder = Path(tempfile.mkdtemp())
    try:
        ear = Ear()
        source = Manifests([folder], ear)
        now: dict[str, dict[str, int] | None] = {}  # what a file holds: names and ports, None if it is broken
        good: dict[str, dict[str, int]] = {}
        port = 0
        for batch in history:
            for action, file, more in batch:
                port += 1
                if action == "write":
                    now[file] = dict.fromkeys(more, port)
                    replace(folder / file, "# \n" + "".join(service(name, port) for name in more))
                elif action == "break":
                    now[file] = None
                    replace(folder / file, BROKEN)
                elif action == "remove":
                    now.pop(file, None)
                    (folder / file).unlink(missing_ok=True)
                elif file in now:
                    now[more] = now.pop(file)
                    (folder / file).rename(folder / more)
            known = ear.names("Service")
            ear.calls.clear()
            await source._look()
            good = {file: good.get(file, {}) if holds is None else holds for file, holds in now.items()}
            names = {name for holds in good.values() for name in holds}
            assert ear.names("Service") == names
            for name in names:
                assert ear.port(name) in {holds[name] for holds in good.values() if name in holds}
            # What stays is not gone even for a moment.
            assert {call[-1] for call in ear.said("gone")} == known - names
    finally:
        shutil.rmtree(folder)
