"""The check of links finds what is broken, and takes what is not for a link as text."""

import pytest

from tools.links import ROOT, anchor, hidden, problems


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(
        "# A page\n\n## Services: what `kube-proxy` does\n\n    # no heading\n"
    )
    (tmp_path / "docs" / "index.md").write_text("[A](a.md)\n")
    (tmp_path / "mkdocs.yml").write_text("nav:\n- Overview: index.md\n- Section:\n  - A: a.md\n")
    return tmp_path


def test_the_repository_has_none():
    assert [*problems(ROOT), *hidden(ROOT)] == []


def test_every_page_is_in_the_navigation_and_in_the_index(tree):
    assert list(hidden(tree)) == []
    (tree / "docs" / "b.md").write_text("# Linked from another page only")
    (tree / "docs" / "a.md").write_text("[b](b.md)")
    assert list(hidden(tree)) == [
        "docs/b.md: is not in the navigation of mkdocs.yml",
        "docs/b.md: is not linked from docs/index.md",
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[x](docs/a.md)", []),
        ("[x](docs/a.md#a-page) [y](docs/a.md#services-what-kube-proxy-does)", []),
        ("[x](#here)\n\n# Here", []),
        ("[x](https://example.org/none.md) [y](mailto:a@example.org)", []),
        ("`[x](none.md)` and\n\n    [x](none.md)\n\n```\n[x](none.md)\n```", []),
        ("[x](none.md)", ["README.md: link to none.md: no such file"]),
        ("[x](docs/a.md#none)", ["README.md: link to docs/a.md#none: no such heading"]),
        ("[x](docs/a.md#no-heading)", ["README.md: link to docs/a.md#no-heading: no such heading"]),
        ("[x](#there)", ["README.md: link to #there: no such heading"]),
        ('<img src="docs/none.svg">', ["README.md: link to docs/none.svg: no such file"]),
        ("`docs/none.md`, `docs/a.md`, `docs/`", ["README.md: docs/none.md does not exist"]),
    ],
)
def test_links_of_a_page(tree, text, found):
    (tree / "README.md").write_text(text)
    assert list(problems(tree)) == found


def test_pages_of_the_site_stay_in_it(tree):
    (tree / "README.md").write_text("")
    (tree / "docs" / "a.md").write_text("[x](../README.md)")
    assert list(problems(tree)) == [
        "docs/a.md: link to ../README.md: leaves docs/, which is all that the web site holds"
    ]


@pytest.mark.parametrize(
    ("heading", "fragment"),
    [
        ("What differs from the reference", "what-differs-from-the-reference"),
        ("Without rules: `--userspace-listen`", "without-rules-userspace-listen"),
        ("iptables mode, 5,000 Services x 3", "iptables-mode-5000-services-x-3"),
        ("[CVE-2020-8554](x.md)", "cve-2020-8554"),
    ],
)
def test_fragments(heading, fragment):
    assert anchor(heading) == fragment
