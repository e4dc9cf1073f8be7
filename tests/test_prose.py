"""The instrument that measures prose, and its bound."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from . import prose
from .prose import Share

pytestmark = pytest.mark.unmeasured

SOURCE = '''
    """A module of five words."""

    import re  # noqa: F401

    # Two words.
    NUMBER = 1  # and three more
    """What a number is."""
    TEXT = "it is no prose, that"


    def act() -> None:
        """Say what it is."""
        text = """That is no docstring."""
        del text
'''


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("The session ends.", (3, 0)),
        ("What it is, and that it's there", (7, 5)),
        ("It's its own, and this one's", (6, 4)),
        ("It’s a typographer’s apostrophe", (4, 1)),
        ("`it` and `session[\"that\"]` are code", (3, 0)),
        ("```python\nit = that\n```\nOne word", (2, 1)),
        ("See https://it.example/that/which for more", (3, 0)),
        ("{class}`~package.It` ends", (2, 0)),
        ("1,696 code lines: 2 + 2", (2, 0)),
        ("", (0, 0)),
    ],
)  # fmt: skip
def test_pointing_words_are_counted(text: str, share: tuple[int, int]) -> None:
    assert prose.share_of(text) == share


def test_comments_and_docstrings_are_prose_and_other_texts_are_not() -> None:
    found = [text for _, text in sorted(prose.prose_of(textwrap.dedent(SOURCE)))]
    assert found == [
        "A module of five words.",
        "Two words.",
        "and three more",
        "What a number is.",
        "Say what it is.",
    ]


def test_a_share_is_of_100_words() -> None:
    assert Share(50, 1).of_100 == 2
    assert Share(0, 0).of_100 == 0
    assert Share(50, 1) + Share(150, 9) == Share(200, 10)
    assert (Share(50, 1) + Share(150, 9)).of_100 == 5


def test_too_much_is_told_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.py").write_text('"""What it is that one of these is."""\n')
    (tmp_path / "two.py").write_text(f'"""{"word " * 20}"""\n')
    monkeypatch.setattr(prose, "PACKAGE", tmp_path)
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    assert prose.main([]) == 1
    assert "The worst: one.py (62.5), two.py (0.0)" in capsys.readouterr().out
    assert prose.main([str(tmp_path / "one.py")]) == 0
    assert capsys.readouterr().out == "1: 5 of 8: What it is that one of these is.\n"
    (tmp_path / "one.py").unlink()
    assert prose.main([]) == 0
    assert capsys.readouterr().out == ""


def test_each_page_has_the_bound_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    good, bad = tmp_path / "README.md", tmp_path / "docs" / "bad.md"
    good.write_text("word " * 1000)
    bad.write_text("# Bad\n\nOne `it` is\nwhat it is.\n\n```text\nthat\n```\n\nNothing here.\n")
    monkeypatch.setattr(prose, "PACKAGE", tmp_path)
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    assert prose.main([]) == 1
    assert "37.5 of 100 words in docs/bad.md point at" in capsys.readouterr().out
    assert prose.main([str(bad)]) == 0
    assert capsys.readouterr().out == "3: 3 of 5: One is what it is.\n"
    monkeypatch.setitem(prose.WORSE, "docs/bad.md", 40)
    assert prose.main([]) == 0


def test_the_prose_of_the_package_names_its_subjects(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert prose.main([]) == 0, capsys.readouterr().out
