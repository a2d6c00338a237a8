"""The status page of a daemon in the lab, in Chromium as a person uses it, and by HTTP as an attacker would."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import hostile
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import PATIENCE, Station, until
from tests.kernel.test_serve import fetch, status
from tests.lab.browser import Browser
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

WEB, GONE = "10.96.0.10", "10.96.0.12"
POD = "10.244.1.100"
PAGE = "http://127.0.0.1:10249/"
MARKUP = "<img src=x onerror=document.title='taken'>"


@pytest.fixture
def browser(lab: Lab) -> Iterator[Browser]:
    with Browser(lab, patience=PATIENCE) as opened:
        yield opened


def serve_two(station: Station) -> None:
    station.folder.put(
        service("web", WEB),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
        service("gone", GONE),
    )


def rows(browser: Browser) -> list[str]:
    """The Services that are listed."""
    found: list[str] = browser.evaluate(
        "[...document.querySelectorAll('#list th')].map(each => each.textContent)"
    )
    return found


def lists(browser: Browser, *names: str) -> None:
    """Waits until these Services are listed, and no other."""
    browser.until(
        "[...document.querySelectorAll('#list th')].map(each => each.textContent).join()"
        f" === {json.dumps(','.join(names))}"
    )


def test_a_person_reads_searches_and_asks(lab: Lab, tmp_path: Path, browser: Browser) -> None:
    station = Station(lab, tmp_path, mode="nftables")
    serve_two(station)
    with station.running():
        browser.open(PAGE)
        lists(browser, "default/gone", "default/web")
        browser.until("document.getElementById('health').textContent === 'ready'")
        shown = browser.text()
        assert f"kube-proxy on {NODE_NAME}" in shown
        assert "nftables mode" in shown
        assert "in place, no endpoints" in shown
        assert "2 Services, 1 without endpoints, 0 with contested fronts" in shown

        # search, by keyboard alone
        browser.press("/", 191, "/")
        browser.until("document.activeElement.id === 'search'")
        browser.type("10.244.1.12:80")  # an endpoint
        lists(browser, "default/web")
        browser.until("document.getElementById('range').textContent === '1 to 1 of 1 Service'")

        # a Service
        browser.evaluate("document.querySelector('#list button').focus()")
        browser.press("Enter", 13, "\r")
        browser.until("document.activeElement.id === 'detail'")
        assert "50.0 %" in browser.evaluate("document.getElementById('detail').innerText")

        # which follows what changes
        station.folder.put(endpoints("web", EP11, local=(EP11,), node=NODE_NAME))
        browser.until("document.getElementById('detail').innerText.includes('100.0 %')")
        station.folder.put(endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME))
        browser.until("document.getElementById('detail').innerText.includes('50.0 %')")

        # explain
        browser.evaluate("document.getElementById('from').focus()")
        browser.type(POD)
        browser.evaluate("document.getElementById('to').focus()")
        browser.type("web.default:80")
        browser.press("Enter", 13, "\r")
        browser.until("document.querySelector('#answer table')")
        answer = browser.evaluate("document.getElementById('answer').innerText")
        assert f"{POD} → {WEB}:80/TCP on node {NODE_NAME}, nftables mode: forward" in answer
        assert "holds what is planned" in answer
        assert f"{EP11} port 8080" in answer

        # a change of the cluster appears by itself
        browser.evaluate("document.getElementById('search').value = ''; list()")
        station.folder.put(service("new", "10.96.0.13"))
        lists(browser, "default/gone", "default/new", "default/web")
        assert browser.evaluate("document.querySelectorAll('#plots svg circle').length") > 0

        # drift does, too
        lab.run("node", "nft", "delete", "table", "ip", "kube-proxy")
        browser.until("document.querySelector('#plots .bar')")
        assert browser.problems == []

        # a wrong question is answered by what is wrong with it; the browser notes the status, which is no fault
        browser.evaluate(
            "document.getElementById('to').value = 'no.such'; document.getElementById('explain').requestSubmit()"
        )
        browser.until("document.getElementById('answer').innerText.includes('there is no Service such/no')")
        assert all("status of 400" in problem for problem in browser.problems)


def test_it_is_dark_if_the_person_prefers_that(lab: Lab, tmp_path: Path, browser: Browser) -> None:
    station = Station(lab, tmp_path, mode="nftables")
    serve_two(station)
    background = "getComputedStyle(document.body).backgroundColor"
    with station.running():
        for scheme, light in (("light", True), ("dark", False)):
            browser.prefer(scheme)
            browser.open(PAGE)
            lists(browser, "default/gone", "default/web")
            colours = browser.evaluate(f"{background}.match(/\\d+/g).map(Number)")
            assert (sum(colours) > 3 * 128) is light, colours
            assert browser.problems == []


def test_a_screen_reader_finds_its_parts(lab: Lab, tmp_path: Path, browser: Browser) -> None:
    station = Station(lab, tmp_path, mode="nftables")
    serve_two(station)
    with station.running():
        browser.open(PAGE)
        lists(browser, "default/gone", "default/web")
        browser.until("document.querySelectorAll('#plots svg').length === 3")
        found = browser.accessible()
    for part in (
        ("heading", "Services"),
        ("heading", "Explain a packet"),
        ("searchbox", "Search"),
        ("combobox", "Show"),
        ("textbox", "From"),
        ("textbox", "To"),
        ("button", "Explain"),
        ("columnheader", "Endpoints"),
        ("rowheader", "default/web"),
        ("button", "default/web"),
    ):
        assert part in found, found
    assert not [
        role for role, name in found if role in {"button", "textbox", "searchbox", "image"} and not name
    ]


def test_names_from_the_cluster_are_text(lab: Lab, tmp_path: Path, browser: Browser) -> None:
    station = Station(lab, tmp_path, mode="nftables")
    serve_two(station)
    cases = [case for case in hostile.CASES if case.name != "many-ports"]
    for number, case in enumerate(cases):
        (station.folder.path / f"bad-{number}.json").write_text(
            json.dumps({"kind": "List", "items": list(case.objects)})
        )
    evil = hostile.service(MARKUP, "10.96.7.9", ({"port": 80, "name": MARKUP},))
    evil["metadata"] |= {"namespace": MARKUP, "labels": {MARKUP: MARKUP}, "annotations": {MARKUP: MARKUP}}
    (station.folder.path / f"{'<script>'}.json").write_text(json.dumps(evil))
    with station.running():
        browser.open(PAGE)
        browser.until("document.querySelectorAll('#list tr').length > 2")
        browser.until("document.querySelectorAll('#warnings li').length > 2")
        for name in rows(browser):
            browser.evaluate(
                f"[...document.querySelectorAll('#list button')].find(b => b.textContent === {json.dumps(name)})?.click()"
            )
            browser.until(
                f"document.getElementById('detail-title')?.textContent === {json.dumps('Service ' + name)}"
            )
        browser.evaluate(f"document.getElementById('search').value = {json.dumps(MARKUP)}; list()")
        browser.evaluate(
            f"document.getElementById('from').value = document.getElementById('to').value = {json.dumps(MARKUP)};"
            "document.getElementById('explain').requestSubmit()"
        )
        browser.until("document.querySelector('#answer .bad')")
        assert (
            browser.evaluate(
                "document.querySelectorAll('img, iframe, object, script:not(:last-child)').length"
            )
            == 0
        )
        assert browser.evaluate("document.title") == f"kube-proxy on {NODE_NAME}"
        assert all("status of 400" in problem for problem in browser.problems)
        # the policy keeps what would get in all the same from doing anything
        browser.problems.clear()
        refused = browser.evaluate(
            "(() => { try { document.body.innerHTML = '<b>x</b>'; return '' } catch (error) { return error.name } })()"
        )
        assert refused == "TypeError"
        assert (
            browser.evaluate("fetch('http://192.0.2.1:10249/').then(() => 'read', () => 'refused')")
            == "refused"
        )


def test_ten_thousand_services_are_paged(lab: Lab, tmp_path: Path, browser: Browser) -> None:
    station = Station(lab, tmp_path, mode="nftables")
    station.folder.write(
        "many.json",
        [service(f"s{n:05}", f"10.{97 + n // 60000}.{n // 250 % 240}.{n % 250 + 1}") for n in range(10_000)],
    )
    with station.running():
        browser.open(PAGE)
        browser.until("document.getElementById('range').textContent === '1 to 50 of 10,000 Services'")
        assert len(rows(browser)) == 50
        assert browser.evaluate("document.getElementById('previous').disabled")
        browser.evaluate("document.getElementById('next').click()")
        browser.until("document.getElementById('range').textContent === '51 to 100 of 10,000 Services'")
        assert rows(browser)[0] == "default/s00050"
        browser.evaluate("document.getElementById('search').focus()")
        browser.type("s0777")
        lists(browser, *(f"default/s{n:05}" for n in range(7770, 7780)))
        assert browser.evaluate("document.getElementsByTagName('*').length") < 1500
        assert browser.problems == []
        for path in (
            "/",
            "/page/state",
            "/page/services?limit=100&search=10",
            "/page/service?namespace=default&name=s00001",
        ):
            code, _, body = fetch(lab, "node", "127.0.0.1", 10249, path)
            assert code == 200
            assert len(body) < 40_000


def test_who_may_read_it(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path, mode="nftables")
    serve_two(station)

    def get(path: str = "/page/services", host: str = "127.0.0.1", role: str = "node", **headers: str) -> int:
        return fetch(lab, role, host, 10249, path, **headers)[0]

    def state() -> Any:
        """None if the connection is closed because the address is being exchanged."""
        try:
            return json.loads(fetch(lab, "node", "127.0.0.1", 10249, "/page/state")[2])
        except (OSError, http.client.HTTPException):
            return None

    def follows() -> bool:
        found = state()
        return bool(found and found["mode"] == "iptables" and found["families"][0]["services"] == 2)

    with station.running():
        assert get() == 200
        assert get(Host="evil.example") == 403
        assert get("/", Host="evil.example:10249") == 403
        assert get("/", Host=NODE_NAME) == 200
        assert get(Origin="https://evil.example") == 403
        assert get(**{"Sec-Fetch-Site": "cross-site"}) == 403
        # the reference's paths are asked by any name
        for path in ("/metrics", "/healthz", "/configz", "/proxyMode", "/flagz", "/statusz"):
            assert get(path, Host="evil.example", Origin="https://evil.example") == 200, path
        assert get("/page") == 404

        # a changed configuration is followed
        config = yaml.safe_load(station.config.read_text())
        station.config.write_text(yaml.safe_dump({**config, "mode": "iptables"}))
        until(follows)
        until(lambda: (found := state()) is not None and found["services"] == 2)
        station.config.write_text(yaml.safe_dump({**config, "metricsBindAddress": "0.0.0.0:10249"}))
        until(
            lambda: status(lab, "node", "127.0.0.1", 10249) == 404,
            "it is not served at an address that others can reach",
        )
        assert get() == 404
        assert fetch(lab, "out", "192.0.2.1", 10249, "/healthz")[0] == 200
    with station.running("--status-page=always"):
        until(lambda: status(lab, "out", "192.0.2.1", 10249) == 200)
        assert get(host="192.0.2.1", role="out", Host="evil.example") == 403
    station.config.write_text(yaml.safe_dump(config))
    with station.running("--status-page=never"):
        assert get("/") == 404
        assert get() == 404
