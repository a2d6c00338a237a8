"""Words for rules: what has none is refused by name."""

import pytest

from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import expressions as x
from kubeproxy.netlink.nft import messages as m
from kubeproxy.netlink.nft import text
from kubeproxy.netlink.nft.messages import TableName

TABLE = TableName(m.IP, "t")


def rendered(*expressions: bytes) -> str:
    return text.render([m.add_table(TABLE), m.add_chain(TABLE, "c"), m.add_rule(TABLE, "c", *expressions)])


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        (wire.nested(1, wire.text(1, "quota"), wire.nested(2)), "expression 'quota' is not supported"),
        (x.payload(0, x.NETWORK_HEADER, 1, 1), "attributes of expression 'payload' are not supported"),
        (x.meta(0, 99), "attributes of expression 'meta' are not supported"),
        (x.lookup("none", 0), "attributes of expression 'lookup' are not supported"),
    ],
)
def test_what_others_write_may_have_no_words(expression: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rendered(expression)


def test_what_belongs_to_no_table_that_is_made_is_passed_over() -> None:
    other = m.add_chain(TableName(m.IP6, "t"), "c")
    assert text.render([m.add_table(TABLE), other]) == "table ip t {\n}\n"
    assert text.render([other]) == ""


def test_a_chain_is_made_once() -> None:
    made = m.add_chain(TABLE, "c", m.Hook("filter", m.INPUT, -5))
    assert text.render([m.add_table(TABLE, "said"), made, made]) == (
        'table ip t {\n\tcomment "said"\n\tchain c {\n\t\ttype filter hook input priority -5; policy accept;\n\t}\n}\n'
    )
