"""The pages beside /metrics."""

import asyncio
import logging
import threading
from collections.abc import Iterator

import msgspec
import pytest

from kubeproxy.config.load import load
from kubeproxy.serve import profile
from kubeproxy.serve.pages import Pages
from kubeproxy.serve.profile import Profiles
from tests.unit.serve.stage import ask


def pages(**flags: object) -> Pages:
    times = iter([1_700_000_000.0, 1_700_007_384.0])
    return Pages(load(flags, "linux"), wall=lambda: next(times))


async def test_the_mode_is_plain_text() -> None:
    answer = await ask(pages(**{"proxy-mode": "nftables"}).routes()["GET /proxyMode"])
    assert (answer.body, answer.content_type) == (b"nftables", "text/plain; charset=utf-8")


async def test_the_configuration_in_effect_is_shown() -> None:
    answer = await ask(pages(**{"cluster-cidr": "10.244.0.0/16"}).routes()["GET /configz"])
    assert answer.content_type == "application/json"
    shown = msgspec.json.decode(answer.body)["kubeproxy.config.k8s.io"]
    assert shown["clusterCIDR"] == "10.244.0.0/16"
    assert shown["mode"] == "iptables"
    assert shown["iptables"]["syncPeriod"] == "30s"


async def test_flags_are_shown_as_text_and_as_json() -> None:
    handler = pages(**{"proxy-mode": "nftables"}).routes()["GET /flagz"]
    lines = (await ask(handler)).body.decode().splitlines()
    assert lines[:2] == ["", "kube-proxy flagz"]
    assert "proxy-mode=nftables" in lines
    names = [line.partition("=")[0] for line in lines[4:]]
    assert names == sorted(names)
    answer = await ask(handler, headers={"accept": "application/json;v=v1beta1;g=config.k8s.io;as=Flagz"})
    told = msgspec.json.decode(answer.body)
    assert (told["kind"], told["metadata"]["name"]) == ("Flagz", "kube-proxy")
    assert told["flags"]["proxy-mode"] == "nftables"


async def test_how_it_fares_is_shown_as_text_and_as_json() -> None:
    made = pages()
    made.lists(["GET /metrics", "PUT /debug/flags/v", "GET /healthz"])
    lines = (await ask(made.routes()["GET /statusz"])).body.decode().splitlines()
    assert lines[:2] == ["", "kube-proxy statusz"]
    assert "Started: Tue Nov 14 22:13:20 UTC 2023" in lines
    assert "Up: 2 hr 03 min 04 sec" in lines
    assert "Paths: /debug/flags/v /healthz /metrics" in lines
    answer = await ask(
        pages().routes()["GET /statusz"],
        headers={"accept": "application/json;v=v1alpha1;g=config.k8s.io;as=Statusz"},
    )
    told = msgspec.json.decode(answer.body)
    assert (told["kind"], told["startTime"]) == ("Statusz", "2023-11-14T22:13:20Z")
    assert told["uptimeSeconds"] == 7384
    assert told["apiVersion"] == "config.k8s.io/v1alpha1"


NEW, OLD = "v=v1beta1;g=config.k8s.io", "v=v1alpha1;g=config.k8s.io"


@pytest.mark.parametrize(
    ("accept", "content_type", "version"),
    [
        ("", "text/plain", ""),
        (" ", "text/plain", ""),
        ("*/*", "text/plain", ""),
        ("text/*", "text/plain", ""),
        ("text/plain;charset=utf-8", "text/plain", ""),
        ("text/html, text/plain;q=0.5", "text/plain", ""),
        (f"application/json;{NEW};as=KIND", "application/json", "v1beta1"),
        (f"application/json;{OLD};as=KIND", "application/json", "v1alpha1"),
        (f"application/yaml;{NEW};as=KIND", "application/yaml", "v1beta1"),
        (f"application/json; as=KIND ; {NEW}", "application/json", "v1beta1"),
        (
            f"application/json;{OLD};as=KIND;q=0.5, application/yaml;{NEW};as=KIND",
            "application/yaml",
            "v1beta1",
        ),
        (f"text/plain;q=0.1, application/json;{NEW};as=KIND", "application/json", "v1beta1"),
        ("application/json;v=foo;g=config.k8s.io;as=KIND, */*", "text/plain", ""),
        ("application/xml", "", ""),
        ("application/json", "", ""),
        ("application/yaml", "", ""),
        (f"application/json;{NEW}", "", ""),
        ("application/json;as=KIND", "", ""),
        (f"application/json;{NEW};as=Other", "", ""),
        ("application/json;v=v1;g=config.k8s.io;as=KIND", "", ""),
        ("application/json;v=v1beta1;g=apps;as=KIND", "", ""),
        (f"application/vnd.kubernetes.protobuf;{NEW};as=KIND", "", ""),
        (f"text/plain;{NEW};as=KIND", "", ""),
        ("text/plain;q=0", "", ""),
    ],
)
@pytest.mark.parametrize("kind", ["Flagz", "Statusz"])
async def test_the_form_and_version_are_negotiated(
    accept: str, content_type: str, version: str, kind: str
) -> None:
    handler = pages().routes()[f"GET /{kind.lower()}"]
    answer = await ask(handler, headers={"accept": accept.replace("KIND", kind)} if accept else {})
    if not content_type:
        refusal = msgspec.json.decode(answer.body)
        assert (answer.status, refusal["kind"], refusal["reason"]) == (406, "Status", "NotAcceptable")
        assert f"application/json;v=v1beta1;g=config.k8s.io;as={kind}" in refusal["message"]
        return
    assert (answer.status, answer.content_type.partition(";")[0]) == (200, content_type)
    if version:
        read = msgspec.json.decode if content_type.endswith("json") else msgspec.yaml.decode
        told = read(answer.body)
        assert (told["kind"], told["apiVersion"]) == (kind, f"config.k8s.io/{version}")
    else:
        assert answer.body.startswith(f"\nkube-proxy {kind.lower()}\n".encode())


@pytest.mark.parametrize(("gate", "page"), [("ComponentFlagz", "flagz"), ("ComponentStatusz", "statusz")])
def test_gates_close_pages(gate: str, page: str) -> None:
    assert f"GET /{page}" in pages().routes()
    assert f"GET /{page}" not in pages(**{"feature-gates": {gate: False}}).routes()


async def test_the_metrics_servers_own_health_is_an_indicator() -> None:
    made = pages()
    assert list(made.slis()) == []
    for _ in range(2):
        assert (await ask(made.routes()["GET /healthz"])).body == b"ok"
    assert {(figure.name, figure.value) for figure in made.slis()} == {
        ("kubernetes_healthcheck", 1),
        ("kubernetes_healthchecks_total", 2),
    }


class TestProfiles:
    @pytest.fixture
    def level(self) -> Iterator[logging.Logger]:
        root = logging.getLogger()
        before = root.level
        yield root
        root.setLevel(before)

    async def test_a_profile_shows_where_time_goes(self) -> None:
        over = False

        async def busy_with_a_task() -> None:
            while not over:
                sum(range(2000))
                await asyncio.sleep(0)

        task = asyncio.create_task(busy_with_a_task())
        answer = await ask(Profiles().routes()["GET /debug/pprof/profile"], query="seconds=0.3")
        over = True
        await task
        stacks = [line.rpartition(" ") for line in answer.body.decode().splitlines()]
        assert all(int(count) > 0 for _, _, count in stacks)
        assert any("busy_with_a_task" in stack for stack, _, _ in stacks)

    async def test_on_windows_a_thread_takes_the_profile(self) -> None:
        over = threading.Event()
        waiting = asyncio.create_task(asyncio.to_thread(over.wait))
        found = await asyncio.to_thread(profile.sample_by_thread, 0.3)
        over.set()
        await waiting
        stacks = [line.rpartition(" ")[0] for line in found.splitlines()]
        assert any("wait" in stack for stack in stacks)
        assert not any("sample_by_thread" in stack for stack in stacks)

    @pytest.mark.parametrize("query", ["seconds=0", "seconds=-1", "seconds=x", "seconds=nan", "seconds=301"])
    async def test_nonsense_is_refused(self, query: str) -> None:
        assert (await ask(Profiles().routes()["GET /debug/pprof/profile"], query=query)).status == 400

    async def test_there_is_one_at_a_time_and_it_ends_with_who_asked(self) -> None:
        handler = Profiles().routes()["GET /debug/pprof/profile"]
        first = asyncio.ensure_future(ask(handler, query="seconds=300"))
        await asyncio.sleep(0.05)
        assert (await ask(handler, query="seconds=1")).status == 409
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (await ask(handler, query="seconds=0.05")).status == 200

    async def test_stacks_are_of_threads_and_tasks(self) -> None:
        async def waits_for_ever() -> None:
            await asyncio.Event().wait()

        task = asyncio.create_task(waits_for_ever())
        await asyncio.sleep(0)
        shown = (await ask(Profiles().routes()["GET /debug/pprof/stacks"])).body.decode()
        task.cancel()
        assert "thread MainThread: " in shown
        assert "waits_for_ever" in shown

    async def test_the_index_names_what_there_is(self) -> None:
        routes = Profiles().routes()
        index = (await ask(routes["GET /debug/pprof/"])).body.decode()
        for route in routes:
            assert route.partition(" ")[2].rstrip("/") in index or route.endswith("pprof")

    async def test_verbosity_can_be_set(self, level: logging.Logger) -> None:
        handler = Profiles().routes()["PUT /debug/flags/v"]
        assert (await ask(handler, method="PUT", body=b"4\n")).status == 200
        assert level.level == logging.DEBUG
        for nonsense in (b"", b"x", b"-1", b"9999", "٣".encode()):
            assert (await ask(handler, method="PUT", body=nonsense)).status == 400
        assert level.level == logging.DEBUG
