"""Which Services the differences between kernel and plans belong to, and which are versions of one thing."""

from kubeproxy.backends.base import KernelComparison
from kubeproxy.insight.changes import Owners, Piece, counted, pieces
from kubeproxy.model.plan import PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint

E1, E2 = Endpoint("10.244.1.11", 8080), Endpoint("10.244.1.12", 8080)


def plan(name: str, ip: str, *endpoints: Endpoint) -> ServicePlan:
    return ServicePlan("shop", name, (PortPlan(f"shop/{name}:http", "TCP", 80, ip, cluster=endpoints),))


PLANS = (plan("api", "10.96.0.10", E1, E2), plan("web", "10.96.0.11", E1))


def found(*, lacking: tuple[str, ...] = (), foreign: tuple[str, ...] = (), order: tuple[str, ...] = ()) -> list[Piece]:  # fmt: skip
    comparison = KernelComparison(lacking, foreign, order)
    return pieces(comparison, Owners(PLANS, lambda _: ()))


def element(ip: str, address: str) -> str:
    return f"add element ip kube-proxy endpoints-1 {{ {ip} . tcp . 80 . 0 : {address} . 8080 }}"


def test_another_version_of_one_thing_differs() -> None:
    (piece,) = found(
        lacking=(element("10.96.0.10", "10.244.1.11"),), foreign=(element("10.96.0.10", "10.244.9.9"),)
    )
    assert (piece.kind, piece.service) == ("differs", "shop/api")
    assert (piece.gained, piece.lost) == ("10.244.1.11:8080", "10.244.9.9:8080")


def test_what_is_missing_and_what_is_foreign() -> None:
    gone, more = element("10.96.0.11", "10.244.1.11"), element("10.96.9.9", "10.244.1.12")
    kinds = {(each.kind, each.service, each.held, each.wanted) for each in found(lacking=(gone,), foreign=(more,))}  # fmt: skip
    assert kinds == {("missing", "shop/web", "", gone), ("foreign", "", more, "")}


def test_rules_in_another_order_keep_their_service() -> None:
    rule = "-t nat -I KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A"
    (piece,) = found(order=(rule,))
    assert (piece.kind, piece.service, piece.wanted) == ("order", "shop/api", rule)


def test_a_chain_belongs_to_the_service_whose_rule_leads_there() -> None:
    lines = (
        '-t nat -A KUBE-SERVICES -d 10.96.0.99/32 -p tcp -m comment --comment "shop/old cluster IP" -m tcp --dport 80 -j KUBE-SVC-OLD',
        "-t nat -N KUBE-SVC-OLD",
        "-t nat -A KUBE-SVC-OLD -j KUBE-SEP-OLD",
    )
    assert {piece.service for piece in found(foreign=lines)} == {"shop/old"}


def test_an_endpoint_of_one_service_only_names_it() -> None:
    hairpin = "add element ip kube-proxy hairpins { 10.244.1.11 . 10.244.1.11 . tcp . 8080 }"
    api = element("10.96.0.10", "10.244.1.11")
    assert {piece.service for piece in found(lacking=(hairpin, api))} == {"shop/api"}
    web = element("10.96.0.11", "10.244.1.11")
    both = {piece.wanted: piece.service for piece in found(lacking=(hairpin, api, web))}
    assert both == {hairpin: "", api: "shop/api", web: "shop/web"}


def test_what_a_plan_describes_is_its_service_s() -> None:
    rule = "-t nat -A KUBE-SEP-A -s 10.244.1.12/32 -j KUBE-MARK-MASQ"
    owners = Owners(PLANS, lambda each: [rule] if each.name == "web" else [])
    (piece,) = pieces(KernelComparison((rule,)), owners)
    assert piece.service == "shop/web"


def test_what_is_common_to_all_belongs_to_none() -> None:
    (piece,) = found(lacking=("-t nat -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",))
    assert (piece.kind, piece.service) == ("missing", "")


def test_numbers_in_words() -> None:
    assert [counted(number, "flow") for number in (1, 2, 1_000)] == ["1 flow", "2 flows", "1,000 flows"]
