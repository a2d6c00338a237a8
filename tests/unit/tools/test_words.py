import pytest

from tools import words


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "src/kubeproxy/api").mkdir(parents=True)
    return tmp_path


def test_the_repository():
    assert list(words.problems()) == []


@pytest.mark.parametrize(
    "line",
    ["The kernel tells us.", "# read anew", "Nobody waits", "self._told = 1", "word of it", "it goes on"],
)
def test_words(root, line):
    (root / "docs/a.md").write_text(f"fine\n{line}\n")
    (found,) = words.problems(root)
    assert found.startswith("docs/a.md:2: ")


@pytest.mark.parametrize("line", ["The intelligent hotel toldo", "nobodyx", "forever", "a password of"])
def test_parts_of_words(root, line):
    (root / "docs/a.md").write_text(line)
    assert list(words.problems(root)) == []
