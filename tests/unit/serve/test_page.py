"""The status page: who may ask, what is answered, and that each answer is bounded."""

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from kubeproxy import log as klog
from kubeproxy.answers.answer import Answer
from kubeproxy.config import ConfigError
from kubeproxy.config.load import RunOptions, load
from kubeproxy.hub import Hub
from kubeproxy.model.explain import Reached
from kubeproxy.model.plan import LostFront, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.reconcile.reconciler import Reconciler
from kubeproxy.serve.healthz import Health
from kubeproxy.serve.message import HTTPResponse, router
from kubeproxy.serve.page import site
from kubeproxy.serve.page.listed import MOST_FRONTS, MOST_ROWS
from kubeproxy.serve.page.recent import LONGEST_WARNING, MOST_SYNCS, MOST_WARNINGS
from kubeproxy.serve.page.site import StatusPage, allowed, assembled, refusal
from tests.fakes.cluster import service
from tests.machines import MACHINE
from tests.unit.serve.stage import HERE, IPV4, IPV6, THERE, Stage, ask, plan

LOCAL = {"host": "127.0.0.1:10249"}
HTML = re.compile(r"(?s)^(.*)<style>(.*)</style>(.*)<script>(.*)</script>(.*)$")


def options(**flags: Any) -> RunOptions:
    return load({name.replace("_", "-"): value for name, value in flags.items()}, "linux")


class Site:
    """The page of a node with one or more loops."""

    def __init__(self, *stages: Stage, **flags: Any) -> None:
        self.hub = Hub("here")
        self.health = Health(timeout=60, eligible=lambda: True)
        self.page = StatusPage(MACHINE, options(**flags), self.health)
        self.page.read_from(self.hub)
        self.attach(*[stage.loop for stage in stages])
        self.handler = router(self.page.use(options(hostname_override="here", **flags)))

    def attach(self, *loops: Reconciler) -> None:
        for loop in loops:
            self.page.syncs.follow(loop)
        self.page.attach(loops)
        self.health.attach(loops)

    async def ask(self, target: str, method: str = "GET", **more: Any) -> HTTPResponse:
        path, _, query = target.partition("?")
        return await ask(self.handler, path, method, query=query, headers=LOCAL, **more)

    async def json(self, target: str) -> Any:
        answer = await self.ask(target)
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    async def names(self, query: str) -> list[str]:
        return [each["name"] for each in (await self.json(f"/page/services?{query}"))["services"]]


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def made(stage: Stage) -> Iterator[Site]:
    found = Site(stage)
    yield found
    found.page.close()


class TestWhetherItIsServed:
    @pytest.mark.parametrize(
        ("flags", "served"),
        [
            ({}, True),
            ({"metrics_bind_address": "[::1]:10249"}, True),
            ({"metrics_bind_address": "127.3.2.1:9"}, True),
            ({"metrics_bind_address": "0.0.0.0:10249"}, False),
            ({"metrics_bind_address": "[::]:10249"}, False),
            ({"metrics_bind_address": "192.0.2.1:10249"}, False),
            ({"metrics_bind_address": "192.0.2.1:10249", "status_page": "loopback"}, False),
            ({"metrics_bind_address": "192.0.2.1:10249", "status_page": "always"}, True),
            ({"status_page": "never"}, False),
            ({"metrics_bind_address": "", "status_page": "always"}, False),
        ],
    )
    def test_at_loopback_by_default_elsewhere_if_that_is_configured(
        self, flags: dict[str, str], served: bool
    ) -> None:
        assert allowed(options(**flags)) is served

    def test_another_value_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="--status-page: 'yes' is none of loopback, always and never"):
            options(status_page="yes")

    async def test_a_changed_configuration_is_followed(self, made: Site) -> None:
        assert made.page.use(options(metrics_bind_address="192.0.2.1:10249")) == {}
        assert made.page.use(options(status_page="never")) == {}
        handler = router(made.page.use(options(proxy_mode="nftables", hostname_override="here")))
        answer = await ask(handler, "/page/state", headers=LOCAL)
        assert json.loads(answer.body)["mode"] == "nftables"


class TestWhoMayAsk:
    @pytest.mark.parametrize(
        "host",
        ["127.0.0.1:10249", "127.0.0.1", "[::1]:10249", "[::1]", "localhost", "LOCALHOST:8080", "here:1"],
    )
    def test_an_address_localhost_and_the_name_of_the_node(self, host: str) -> None:
        assert refusal({"host": host}, "here", data=True) == ""

    @pytest.mark.parametrize(
        "host",
        [
            "",
            "evil.example",
            "evil.example:10249",
            "127.0.0.1.evil.example",
            "here.evil.example",
            ":1",
        ],
    )
    def test_another_name_may_be_a_rebound_one(self, host: str) -> None:
        assert "Host header" in refusal({"host": host}, "here", data=False)

    @pytest.mark.parametrize(
        "headers",
        [
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": "http://127.0.0.1:8080"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
        ],
    )
    def test_another_site_gets_no_data(self, headers: dict[str, str]) -> None:
        assert refusal({**LOCAL, **headers}, "here", data=True) == "the request comes from another web site"
        assert refusal({**LOCAL, **headers}, "here", data=False) == ""  # it may link to the page

    def test_the_page_itself_may(self) -> None:
        headers = {**LOCAL, "origin": "http://127.0.0.1:10249", "sec-fetch-site": "same-origin"}
        assert refusal(headers, "here", data=True) == ""

    async def test_every_path_is_guarded(self, made: Site) -> None:
        routes = made.page.use(options())
        for route in routes:
            method, _, path = route.partition(" ")
            answer = await ask(router(routes), path, method, headers={"host": "evil.example"})
            assert answer.status == 403, route

    async def test_a_question_is_json_which_no_form_of_another_site_can_send(self, made: Site) -> None:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            headers = {**LOCAL, "content-type": kind}
            answer = await ask(
                made.handler, "/page/explain", "POST", headers=headers, body=b'{"from":"","to":""}'
            )
            assert answer.status == 400, kind
        assert (await made.ask("/page/explain")).status == 405


class TestThePage:
    async def test_it_allows_its_own_script_and_style_alone(self, made: Site) -> None:
        answer = await made.ask("/")
        headers = dict(answer.headers)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cache-Control"] == "no-store"
        assert answer.content_type == "text/html; charset=utf-8"

    def test_its_hashes_are_those_of_its_content(self) -> None:
        body, policy = assembled()
        parts = HTML.match(body.decode())
        assert parts is not None
        for content in (parts[2], parts[4]):
            assert site._hash(content) in policy

    def test_it_is_small_and_names_no_other_site(self) -> None:
        body, _ = assembled()
        assert len(body) < 40_000
        found = re.findall(rb"https?://[^\"]*", body)
        assert found == [b"http://www.w3.org/2000/svg"]  # a name, not an address
        assert not re.search(rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", body)
        assert not re.search(rb"\son[a-z]+=|\sstyle=", body)  # the policy does not allow them


class TestServices:
    async def test_nothing_is_known_yet(self) -> None:
        found = Site()
        assert await found.json("/page/services") == {"total": 0, "offset": 0, "services": []}
        state = await found.json("/page/state")
        assert (state["services"], state["ready"]) == (0, False)
        found.page.close()

    async def test_a_service_waits_until_the_kernel_has_it(self, stage: Stage, made: Site) -> None:
        made.hub.set(service("web", "10.96.0.1"))
        (listed,) = (await made.json("/page/services"))["services"]
        assert (listed["name"], listed["status"]) == ("web", "pending")
        stage.synced(plan("web", cluster=(HERE, THERE), any=True))
        (listed,) = (await made.json("/page/services"))["services"]
        assert listed == {
            "namespace": "default", "name": "web", "status": "done", "words": "", "empty": False, "contested": 0,
            "fronts": ["10.96.0.1:80/TCP"], "moreFronts": 0, "endpoints": 2, "local": 1,
        }  # fmt: skip

    async def test_refused_empty_and_contested_services_are_named(self, stage: Stage, made: Site) -> None:
        lost = LostFront("node port", "", "TCP", 30080, ("shop", "api"))
        contested = ServicePlan(
            "default", "late", plan("late", cluster=(HERE,), any=True).ports, lost=(lost,)
        )
        stage.synced(
            plan("web", cluster=(HERE,), any=True), plan("none"), contested, full=True,
            failures={("default", "bad"): "Invalid <argument>"},
        )  # fmt: skip
        made.hub.received["Service"] += 1
        assert await made.names("which=empty") == ["none"]
        assert await made.names("which=contested") == ["late"]
        assert await made.names("which=done") == ["late", "none", "web"]
        (bad,) = (await made.json("/page/services?which=refused"))["services"]
        assert (bad["status"], bad["words"]) == ("refused", "Invalid <argument>")
        detail = await made.json("/page/service?namespace=default&name=late")
        assert detail["lost"] == ["node port :30080/TCP belongs to shop/api"]
        state = await made.json("/page/state")
        assert (state["empty"], state["contested"], state["families"][0]["refused"]) == (1, 1, 1)

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            ("web", ["web"]),
            ("WEB", ["web"]),
            ("default/w", ["web"]),
            ("dns.default", ["dns"]),
            ("10.96.0.1", ["dns", "web"]),
            ("10.96.0.10", ["dns"]),
            ("10.96.0.1:80", ["web"]),
            ("53", ["dns"]),
            (":30080", ["web"]),
            ("30080", ["web"]),
            ("8080", ["web"]),
            ("10.1.0", ["web"]),
            ("10.1.0.1:8080", ["web"]),
            ("fd00::5", ["six"]),
            ("[fd00::5]:80", ["six"]),
            ("metrics", ["dns"]),
            ("10.96 80", ["web"]),
            ("web 53", []),
            ("%00", []),
            ("²", []),
            ("99999999999999999999", []),
        ],
    )
    async def test_search(self, words: str, found: list[str]) -> None:
        four, six = Stage(), Stage(IPV6)
        endpoint = Endpoint("10.1.0.1", 8080)
        web = PortPlan("default/web", "TCP", 80, "10.96.0.1", node_port=30080, cluster=(endpoint,), any=True)
        dns = PortPlan("default/dns:metrics", "UDP", 53, "10.96.0.10")
        four.synced(ServicePlan("default", "web", (web,)), ServicePlan("default", "dns", (dns,)))
        six.synced(ServicePlan("default", "six", (PortPlan("default/six", "TCP", 80, "fd00::5"),)))
        made = Site(four, six)
        from urllib.parse import quote

        answer = await made.names(f"search={quote(words)}")
        assert answer == (sorted([*found, "six"]) if words == "80" else found)
        made.page.close()

    async def test_lists_are_bounded_and_paged(self, stage: Stage, made: Site) -> None:
        stage.synced(*(plan(f"s{number:05}") for number in range(10_000)))
        first = await made.json("/page/services")
        assert (first["total"], len(first["services"])) == (10_000, 50)
        last = await made.json(f"/page/services?offset=9990&limit={MOST_ROWS}")
        assert [each["name"] for each in last["services"]] == [
            f"s{number:05}" for number in range(9990, 10_000)
        ]
        found = await made.json("/page/services?search=s0999&offset=3&limit=2")
        assert (found["total"], [each["name"] for each in found["services"]]) == (10, ["s09993", "s09994"])
        assert len((await made.ask(f"/page/services?limit={MOST_ROWS}")).body) < 40_000

    async def test_a_service_with_many_fronts_and_endpoints_is_bounded(
        self, stage: Stage, made: Site
    ) -> None:
        many = tuple(Endpoint(f"10.1.{n // 250}.{n % 250}", 80) for n in range(2500))
        addresses = tuple(f"192.0.2.{n}" for n in range(200))
        port = PortPlan("default/web", "TCP", 80, "10.96.0.1", external_ips=addresses, cluster=many, any=True)
        stage.synced(ServicePlan("default", "web", (port,) * 150))
        (listed,) = (await made.json("/page/services"))["services"]
        assert (len(listed["fronts"]), listed["moreFronts"]) == (MOST_FRONTS, 150 * 201 - MOST_FRONTS)
        detail = await made.json(f"/page/service?namespace=default&name=web&offset=2450&limit={MOST_ROWS}")
        assert (len(detail["ports"]), detail["morePorts"]) == (MOST_ROWS, 50)
        assert (detail["total"], len(detail["endpoints"])) == (150 * 2500, MOST_ROWS)
        assert detail["endpoints"][0]["internal"] == 1 / 2500

    async def test_shares_follow_the_policies(self, stage: Stage, made: Site) -> None:
        port = PortPlan(
            "default/web:http", "TCP", 80, "10.96.0.1", node_port=30080, external_local=True,
            cluster=(HERE, THERE), local=(HERE,), any=True, affinity=600, topology="PreferSameZone",
        )  # fmt: skip
        stage.synced(ServicePlan("default", "web", (port,)))
        detail = await made.json("/page/service?namespace=default&name=web")
        assert [(each["address"], each["internal"], each["external"]) for each in detail["endpoints"]] == [
            ("10.1.0.1:80", 0.5, 1.0),
            ("10.2.0.1:80", 0.5, 0.0),
        ]
        (shown,) = detail["ports"]
        assert (shown["internal"], shown["external"]) == ("forward, policy Cluster", "forward, policy Local")
        assert (shown["fronts"], shown["affinity"]) == (["10.96.0.1:80/TCP", ":30080/TCP"], 600)

    async def test_a_search_lets_others_work(self, stage: Stage, made: Site) -> None:
        stage.synced(*(plan(f"s{number:05}") for number in range(3000)))
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.ensure_future(count())
        await made.json("/page/services?search=10.96")
        counting.cancel()
        assert turns > 50

    async def test_what_is_known_is_computed_again_only_after_a_change(
        self, stage: Stage, made: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage.synced(plan("web"))
        await made.json("/page/state")
        catalog = made.page._open_catalog()
        assert catalog is not None
        first = await catalog.known()
        await made.json("/page/state")
        assert await catalog.known() is first
        stage.synced(plan("api"))
        assert [key[1] for key in (await catalog.known()).keys] == ["api", "web"]

    @pytest.mark.parametrize(
        "query",
        [
            "limit=101", "limit=-1", "limit=x", "offset=1e3", "offset=99999999999999999999", "which=all",
            f"search={'x' * 201}", "&".join(f"a{n}=1" for n in range(20)), "limit=²",
        ],
    )  # fmt: skip
    async def test_a_wrong_query_is_refused(self, made: Site, query: str) -> None:
        assert (await made.ask(f"/page/services?{query}")).status == 400

    async def test_there_is_no_such_service(self, made: Site) -> None:
        assert (await made.ask("/page/service?namespace=default&name=nowhere")).status == 404
        assert (await made.ask("/page/service")).status == 404
        assert (await made.ask("/page/service?limit=x")).status == 400

    async def test_another_set_of_loops_is_shown_after_an_exchange(self, stage: Stage, made: Site) -> None:
        stage.synced(plan("old"))
        assert await made.names("") == ["old"]
        other = Stage()
        made.attach(other.loop)
        other.synced(plan("new"))
        assert await made.names("") == ["new"]


class TestSyncs:
    async def test_latency_and_drift(self, stage: Stage, made: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(made.page.syncs, "_wall", lambda: 1000.0)
        stage.synced(plan("web"), seconds=0.25, triggered=(999.5, 998.0))
        stage.loop._watchdog.repairs = 2
        stage.synced(full=True, seconds=0.5)
        state = await made.json("/page/state")
        assert state["syncs"] == [
            [1, 1000.0, IPV4, False, 0.25, 2.0, 0],
            [2, 1000.0, IPV4, True, 0.5, None, 2],
        ]
        assert state["families"][0]["repairs"] == 2
        assert [each[0] for each in (await made.json("/page/state?syncs=1"))["syncs"]] == [2]

    async def test_they_are_bounded(self, stage: Stage, made: Site) -> None:
        for _ in range(2 * MOST_SYNCS):
            stage.synced()
        assert len((await made.json("/page/state"))["syncs"]) == MOST_SYNCS


class TestWarnings:
    async def test_the_last_ones_are_shown(self, made: Site) -> None:
        log = logging.getLogger("kubeproxy.test")
        log.info("not this")
        log.warning("Service %(service)s\n: no", {"service": "<b>x</b>"})
        log.error("worse")
        found = (await made.json("/page/state"))["warnings"]
        assert [(each["severity"], each["message"]) for each in found][-2:] == [
            ("warning", "Service <b>x</b>\\n: no"),
            ("error", "worse"),
        ]
        last = found[-1]["number"]
        assert (await made.json(f"/page/state?warnings={last}"))["warnings"] == []

    async def test_they_are_bounded(self, made: Site) -> None:
        log = logging.getLogger("kubeproxy.test")
        for number in range(2 * MOST_WARNINGS):
            log.warning("%(text)s", {"text": f"{number} " + "x" * 10_000})
        found = (await made.json("/page/state"))["warnings"]
        assert len(found) == MOST_WARNINGS
        assert found[-1]["message"].startswith(f"{2 * MOST_WARNINGS - 1} x")
        assert all(len(each["message"]) <= LONGEST_WARNING + 1 for each in found)

    async def test_hostile_text_is_json(self, made: Site) -> None:
        kept = made.page._warnings
        assert kept is not None
        texts = ("\ud800", "\x1b[2J", "\u202e", "</script><script>alert(1)</script>", "x" * 200_000)
        for each in texts:  # not through the log, because pytest keeps it and cannot encode a lone surrogate
            kept.emit(logging.LogRecord("x", logging.ERROR, "", 0, "%(text)s", ({"text": each},), None))
        kept.emit(logging.LogRecord("x", logging.ERROR, "", 0, "%(text)d", ({"text": "no number"},), None))
        found = (await made.json("/page/state"))["warnings"]
        assert [each["message"][:10] for each in found] == [
            "\\ud800",
            "\\x1b[2J",
            "\\u202e",
            "</script><",
            "x" * 10,
        ]

    async def test_none_are_kept_where_the_page_is_not_served(self, made: Site) -> None:
        handlers = logging.getLogger().handlers
        before = len(handlers)
        made.page.use(options(status_page="never"))
        assert len(handlers) == before - 1
        made.page.use(options())
        made.page.use(options())
        assert len(handlers) == before

    async def test_they_are_kept_after_the_log_was_configured_again(self, made: Site) -> None:
        root = logging.getLogger()
        kept = root.handlers[:], root.level
        try:
            klog.setup(klog.LogSettings())
            made.page.use(options())
            logging.getLogger("kubeproxy.test").error("after")
        finally:
            root.handlers[:], level = kept
            root.setLevel(level)
        assert (await made.json("/page/state"))["warnings"][-1]["message"] == "after"


async def question(made: Site, body: bytes) -> HTTPResponse:
    headers = {**LOCAL, "content-type": "application/json; charset=utf-8"}
    return await ask(made.handler, "/page/explain", "POST", headers=headers, body=body)


class TestQuestions:
    async def test_nothing_is_known_yet(self, made: Site) -> None:
        assert (await question(made, b'{"from": "node", "to": ":80"}')).status == 503

    @pytest.mark.parametrize(
        "body", [b"", b"{}", b"[]", b'{"from": 1, "to": ""}', b"\xff", b'{"from": "\\ud800", "to": ""}']
    )
    async def test_a_body_that_is_no_question_is_refused(self, made: Site, body: bytes) -> None:
        assert (await question(made, body)).status == 400

    async def test_only_some_wait_at_a_time(self, made: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        made.page.answer_from(lambda: None)  # type: ignore[arg-type, return-value]
        monkeypatch.setattr(made.page, "_asking", site.MOST_QUESTIONS)
        assert (await question(made, b'{"from": "node", "to": ":80"}')).status == 503

    async def test_an_answer_is_bounded(self, made: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        endpoints = tuple(Reached(f"10.1.0.{n}", 80, 0.004, False, "", "", False, "s") for n in range(250))
        answer = Answer(
            source="10.1.0.1", destination="10.96.0.1", port=80, protocol="TCP", interface="", mode="nftables",
            node="here", verdict="forward", reason="", service="", port_name="", front="", masquerade=False,
            endpoints=endpoints, excluded=(), stages=(), differences=("x",) * 101,
        )  # fmt: skip

        async def answered(*_: object) -> Answer:
            return answer

        monkeypatch.setattr("kubeproxy.answers.asking.ask", answered)
        made.page.answer_from(lambda: None)  # type: ignore[arg-type, return-value]
        found = json.loads((await question(made, b'{"from": " 10.1.0.1 ", "to": "10.96.0.1:80"}')).body)
        assert len(found["answer"]["endpoints"]) == site.MOST_LISTED
        assert found["more"] == {"endpoints": 150, "differences": 1}
        assert found["answer"]["from"] == "10.1.0.1"
