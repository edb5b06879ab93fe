r"""What a text states as its answer, and where: the conventions by which answers to mathematics problems are read.

1. **Marked**, in this order: the content of the last ``\boxed{…}``; the line after the last ``####`` (GSM8K's own
   form); what follows the last "answer is", "answer:"; or the whole text, when it is nothing but an expression, perhaps
   with a unit.
2. **Unmarked**: the last number, fraction or formula between dollars, whichever ends the text; of an equation its
   right-hand side.
3. An answer that breaks off within its only box states nothing: its last digits may be missing.

A **strict** reading takes 1 alone, a **flexible** one 1, else 2: the two filters of lm-evaluation-harness for GSM8K,
whose strict one is ``####``. Markdown's bold and code marks count as spaces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_SIGN = r"(?:(?<![\w)}])[-+−–])?"
_CURRENCY = r"(?:US\$|\\?\$|[€£¥])"
_FRACTION = r"\\[dt]?frac\s*(?:\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|\d\d)"
_PERCENT = r"(?:\s*\\?%|\s*per\s?cent\b)"
_DIGITS = r"(?:\d[\d.,:]*|\.\d+)(?:[eE]-?\d{1,3}\b)?(?:\s?/\s?\d[\d.,]*)?|[½¼¾]"
_SCALE = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_NUMBER = re.compile(
    rf"(?<!\^)(?<!\^\{{){_SIGN}{_CURRENCY}?{_SIGN}(?:{_FRACTION}|{_DIGITS})(?:\s(?:{'|'.join(_SCALE)})\b)?{_PERCENT}?",
    re.IGNORECASE,
)
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$(?!\s)([^$\n]*[^$\n\s\\])\$(?!\d)", re.DOTALL
)
_ANSWER = re.compile(r"\banswer\b(?:\s+to\b[^.\n:]{0,60}?)?\s*(?:is|are|would be|will be|:|=)[\s:=]*", re.IGNORECASE)
_CLAUSE = re.compile(r".*?(?=\.(?:\s|$)|\n|$)")
_VALUE = re.compile(
    r"(?P<minus>[-−–+])?\s*(?:US\$|[$€£¥])?\s*(?P<minus2>[-−–])?"
    r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+|[½¼¾])"
    r"(?:e(?P<power>-?\d{1,3}))?(?:\s?/\s?(?P<over>\d+(?:,\d{3})*))?"
    rf"(?:\s(?P<scale>{'|'.join(_SCALE)})\b)?(?P<percent>\s*%|\s*per\s?cent\b)?(?P<unit>[^\d].*)?",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Stated:
    """What a text states.

    Attributes:
        text: the words themselves.
        span: where they stand, ``(begin, end)``.
        marked: whether in a form made for it (1 above), rather than in passing (2).
    """

    text: str
    span: tuple[int, int]
    marked: bool


def stated(text: str) -> Stated | None:
    r"""What a text states as its answer; None where it states nothing.

    >>> stated("9 * 9 = 81.")
    Stated(text='81', span=(8, 10), marked=False)
    >>> stated(r"9 * 9 is \boxed{81}, I hope.").marked
    True
    """
    plain = re.sub(r"\*\*|__|`", lambda mark: " " * len(mark[0]), text)
    if (span := boxed(plain)) is not None:
        return _at(text, span, True)
    if re.search(r"\\boxed\s*\{", plain):
        return None
    if (span := after_hashes(plain)) is not None:
        return _at(text, span, True)
    if found := list(_ANSWER.finditer(plain)):
        clause = _CLAUSE.match(plain, found[-1].end())
        if clause is not None and clause[0].strip():
            return _at(text, _within(plain, clause.span()), True)
    span = _trimmed(plain, (0, len(plain)), "()_'\"")
    if value(plain[slice(*span)]) is not None and not _sentence(plain):
        return _at(text, span, True)
    return _last(plain, text)


def boxed(text: str) -> tuple[int, int] | None:
    r"""Where the content of the last complete ``\boxed{…}`` stands."""
    for start in reversed([match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for i, character in enumerate(text[start:], start):
            escaped = text[i - 1] == "\\" and text[i - 2] != "\\"
            depth += 0 if escaped else {"{": 1, "}": -1}.get(character, 0)
            if depth == 0:
                return start, i
    return None


def after_hashes(text: str) -> tuple[int, int] | None:
    """Where the first line after the last ``####`` stands."""
    before, mark, after = text.rpartition("####")
    if not mark:
        return None
    begin = len(before) + len(mark) + len(after) - len(after.lstrip())
    line = (text[begin:].splitlines() or [""])[0].rstrip()
    return begin, begin + len(line)


def value(text: str) -> tuple[Fraction, bool] | None:
    r"""The number that a text is, and whether it is a percentage; None where it is none.

    Currency, thousands separators, units, full stops at the end and TeX's spacing do not matter.

    >>> value(r"\$1,200.50"), value("3/4 of the cake"), value(r"75\%")
    ((Fraction(2401, 2), False), (Fraction(3, 4), False), (Fraction(75, 1), True))
    """
    text = spelt(text)
    if re.fullmatch(r"\D*\d{1,3}(?:\s\d{3})+(?:\.\d+)?\D*", text):
        text = re.sub(r"(?<=\d)\s(?=\d)", ",", text)
    match = _VALUE.fullmatch(text)
    if not match or len(text) > 1000 or not _unit(match["unit"] or ""):
        return None
    over = int((match["over"] or "1").replace(",", ""))
    if not over:
        return None
    quarters = {"½": Fraction(1, 2), "¼": Fraction(1, 4), "¾": Fraction(3, 4)}
    number = quarters.get(match["number"]) or Fraction(match["number"].replace(",", "").rstrip("."))
    number = number * Fraction(10) ** int(match["power"] or 0) / over * _SCALE.get((match["scale"] or "").lower(), 1)
    negative = match["minus"] in ("-", "−", "–") or match["minus2"] is not None
    return (-number if negative else number), match["percent"] is not None


def spelt(text: str) -> str:
    r"""A text without the dress of TeX and markdown: ``\text{…}``, spacing, escapes, dollars around all, full stop
    at the end.
    """
    text = re.sub(r"\*\*|__|`", "", text).replace("{,}", ",").replace("^\\circ", "°").replace("^{\\circ}", "°")
    text = re.sub(r"\\(?:text|mathrm|mbox|textbf|mathbf|textit)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)(\d))", _slashed, text)
    text = re.sub(r"(?<=\d)\\[,!;:](?=\d{3})", ",", text)
    text = re.sub(r"\\[,!;: ]|~", " ", text).replace("\\%", "%").replace("\\$", "$")
    text = " ".join(text.split()).rstrip(".,;:!")
    inner = re.fullmatch(r"\$([^$]+)\$|\\\((.+)\\\)|\\\[(.+)\\\]", text)
    return next(filter(None, inner.groups())).strip() if inner else text


def _slashed(match: re.Match[str]) -> str:
    return f"{match[1] or match[3]}/{match[2] or match[4]}"


def _unit(text: str) -> bool:
    """Whether what follows a number is a unit or a thing counted, not more mathematics."""
    text = re.sub(r"\^\{?[23]\}?|[²³]", "", text)
    if re.search(r"[\d=+*<>\\^_{}|×÷]", text):
        return False
    words = re.findall(r"[A-Za-z]+", text)
    return not any(word.lower() in ("pi", "or", "and", "to", "x", "y", "z", "n", "i", "e", "sqrt") for word in words)


def _sentence(text: str) -> bool:
    """Whether a text says more than a number and what it counts."""
    words = re.findall(r"[^\W\d_]{2,}", re.sub(r"\\[A-Za-z]+", "", text))
    return len(words) > 4 or (bool(words) and text.rstrip()[-1:] in ".!?") or text.rstrip()[-1:] in "!?"


def _at(text: str, span: tuple[int, int], marked: bool) -> Stated:
    begin, end = _trimmed(text, span)
    return Stated(text[begin:end], (begin, end), marked)


def _trimmed(text: str, span: tuple[int, int], also: str = "") -> tuple[int, int]:
    """The span without spaces and marks of markdown, and `also` these characters, around it."""
    inside, marks = text[slice(*span)], " \t\r\n*`" + also
    begin = span[0] + len(inside) - len(inside.lstrip(marks))
    return begin, max(begin, span[1] - (len(inside) - len(inside.rstrip(marks))))


def _within(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """What of a clause after "answer is" is the answer: all of it, a formula, or its first number."""
    clause = text[slice(*span)]
    if value(clause) is not None:
        return span
    if formula := _FORMULA.search(clause):
        return span[0] + formula.start(), span[0] + formula.end()
    words = re.findall(r"(?<!\\)\b[A-Za-z]{2,}", clause)
    number = _NUMBER.search(clause)
    if words and number:
        return span[0] + number.start(), span[0] + number.end()
    return span


def _last(plain: str, text: str) -> Stated | None:
    """The last number or formula; of an equation its right-hand side."""
    ends = [(match.end(), match.start()) for match in _NUMBER.finditer(plain)]
    for match in _FORMULA.finditer(plain):
        group = next(i for i in range(1, 5) if match[i] is not None)
        begin = match.start(group) + match[group].rfind("=") + 1
        if not re.search(r"(?<!\\)\b[A-Za-z]{3,}", match[group]):  # dollars, not formulas, stand around words
            ends = [one for one in ends if not match.start() <= one[1] < match.end()]
            ends.append((match.end(group), begin))
    if not ends:
        return None
    end, begin = max(ends)
    inside = plain[begin:end].rstrip(".,:; ")
    begin += len(inside) - len(inside.lstrip())
    return _at(text, (begin, begin + len(inside.lstrip())), False)
