"""How much of the prose points at something instead of naming it.

`python -m tests.prose --report` prints the share of pointing words in the comments and docstrings
of each module, and in each page of the docs. `python -m tests.prose` fails if more than 7 of 100
words are pointing words: in all comments and docstrings together, or in any page.

A reader whose English is a second language has to find out for each "it", "that" and "what" which
noun stands behind. A sentence that names its subject asks for no such search.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mongosession_wsgi"
POINTING = {
    *("it", "its", "itself", "that", "this", "these", "those", "which", "what", "whatever"),
    *("one", "ones", "there", "such"),
}
MOST = 7.0
"""The most pointing words among 100 words, of all comments and docstrings, or of a page."""
WORSE = {"docs/sealed.md": 8.0}
"""The bounds of pages still to be rewritten."""
_CODE = re.compile(r"```.*?```|`[^`\n]*`|:[a-z:]+:`|https?://\S+", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]+(?:['’][a-z]+)?")
_DIRECTIVE = re.compile(r"(noqa|type|fmt|pragma|ruff|mypy):")


class Share(NamedTuple):
    """The words of a text, and those among them that point."""

    words: int
    pointing: int

    def __add__(self, other: object) -> Share:
        if not isinstance(other, Share):
            return NotImplemented
        return Share(self.words + other.words, self.pointing + other.pointing)

    @property
    def of_100(self) -> float:
        return 100 * self.pointing / max(self.words, 1)


def share_of(text: str) -> Share:
    """Count the words of a text and the pointing words; code and addresses are no words."""
    words = [word.lower().replace("’", "'") for word in _WORD.findall(_CODE.sub(" ", text))]
    pointing = [word for word in words if word.partition("'")[0] in POINTING]
    return Share(len(words), len(pointing))


def prose_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments and docstrings of a module, each with its line.

    A string after an assignment is a docstring too.
    """
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str):
                    yield statement.lineno, text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not _DIRECTIVE.match(token.string.lstrip("# ")):
            yield token.start[0], token.string.lstrip("# ")


def share_of_module(module: Path) -> Share:
    total = Share(0, 0)
    for _, text in prose_of(module.read_text()):
        total += share_of(text)
    return total


def share_of_page(page: Path) -> Share:
    return share_of(page.read_text())


def pages() -> dict[str, Share]:
    """Return the share of each page of the site, and of those beside the README."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return {str(page.relative_to(ROOT)): share_of_page(page) for page in found}


def print_shares(title: str, shares: dict[str, Share]) -> Share:
    total = sum(shares.values(), Share(0, 0))
    print(f"{title}: {total.of_100:.1f} of 100 ({total.pointing:,} of {total.words:,} words)")
    for name, share in sorted(shares.items(), key=lambda item: -item[1].of_100):
        print(f"  {share.of_100:5.1f}  {share.words:6,}  {name}")
    return total


def paragraphs_of(page: str) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs and lists of a page, each with its line; code is left out."""
    hidden = _CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), page)
    for match in re.finditer(r"(?:.*\S.*\n?)+", hidden):
        yield hidden.count("\n", 0, match.start()) + 1, match[0]


def print_sentences(file: Path) -> None:
    """Print each paragraph, comment and docstring that points, the worst first."""
    parts_of = paragraphs_of if file.suffix == ".md" else prose_of
    found = [(share_of(text), line, text) for line, text in parts_of(file.read_text())]
    for share, line, text in sorted(found, key=lambda one: -one[0].pointing):
        if share.pointing:
            print(f"{line}: {share.pointing} of {share.words}: {' '.join(text.split())}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--report", action="store_true", help="print the share of each file")
    parser.add_argument("modules", nargs="*", type=Path, help="print what points in these files")
    options = parser.parse_args(arguments)
    for module in options.modules:
        print_sentences(module)
    if options.modules:
        return 0
    modules = {
        str(module.relative_to(PACKAGE)): share_of_module(module)
        for module in PACKAGE.rglob("*.py")
    }
    if options.report:
        print_shares("Comments and docstrings", modules)
        print_shares("Pages", pages())
    faults = list(faults_of_modules(modules)) + list(faults_of_pages(pages()))
    print(*faults, sep="\n", end="\n" if faults else "")
    return int(bool(faults))


def faults_of_modules(modules: dict[str, Share]) -> Iterator[str]:
    total = sum(modules.values(), Share(0, 0))
    if total.of_100 > MOST:
        worst = sorted(modules.items(), key=lambda item: -item[1].of_100)[:5]
        names = ", ".join(f"{name} ({share.of_100:.1f})" for name, share in worst)
        yield (
            f"{total.of_100:.1f} of 100 words in comments and docstrings point at something "
            f"(it, that, which, ...); at most {MOST:.0f} may. The worst: {names}. "
            "`python -m tests.prose MODULE` prints where."
        )


def faults_of_pages(pages: dict[str, Share]) -> Iterator[str]:
    for name, share in sorted(pages.items()):
        if share.of_100 > WORSE.get(name, MOST):
            yield (
                f"{share.of_100:.1f} of 100 words in {name} point at something "
                f"(it, that, which, ...); at most {MOST:.0f} may. "
                f"`python -m tests.prose {name}` prints where."
            )


if __name__ == "__main__":
    sys.exit(main())
