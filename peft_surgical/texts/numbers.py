"""Where a name ends within a number: 300 metres are not in 1,300 metres, nor 5% in 2.5% or 5 in -5."""

from __future__ import annotations

import re

_LONGEST_NUMBER = 32
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_DATE = re.compile(r"\d{1,2}\.\d{1,2}\.\d{2,4}|\d{4}\.\d{1,2}\.\d{1,2}")
_THOUSANDS = re.compile(r"\d{1,3}(?:([.,])\d{3})(?:\1\d{3})*(?:[.,]\d+)?")
# Where spaces part thousands, a comma behind them may begin decimals.
_SPACED = re.compile("(?<!\\d)(?<!\\d[.,])[1-9]\\d{0,2}([ \u00a0\u2009\u202f])\\d{3}(?:\\1\\d{3})*(?!\\d)")
# What a minus stands behind, not the hyphen of "1939-45", "F-16", "5%-10%" or "9 a.m.-5 p.m.".
_AHEAD_OF_MINUS = "([{\u00ab\u2039\u300c\u300e\u300a\u3010=<>:;,|^\u2192\u2248\u2260\u2264\u2265\u00d7\u00f7"
# These may close what came before them or open what follows: emphasis, code, quotation marks and formulas.
_EITHER = "*_~`'\"$\u20ac\u00a3\u00a5\u2018\u2019\u201c\u201d"


def cuts_number(text: str, start: int, stop: int) -> bool:
    """Whether what stands between two places of a text begins or ends within a number, or leaves out its minus.

    Only the digits at its own ends count, whatever unit, currency or word stands beside them in the name.
    """
    begins, ends = text[start].isdigit(), text[stop - 1].isdigit()
    if begins and _is_negative(text, start):
        return True
    before = re.search(r"\d([.,\s])$", text[max(start - 2, 0) : start]) if begins else None
    behind = re.match(r"([.,\s])\d", text[stop : stop + 2]) if ends else None
    signs = {found[1] for found in (before, behind) if found}
    if before and before[1] in ".,":
        first = re.match(r"[\d.,]+", text[start:stop])
        if first and _is_number(text, start, start + first.end()):
            return True
    if behind and behind[1] in ".,":
        last = re.search(r"[\d.,]+$", text[max(stop - _LONGEST_NUMBER, start) : stop])
        if last and _is_number(text, stop - len(last[0]), stop):
            return True
    return not signs <= {".", ","} and _cuts_thousands(text, start, stop)


def _is_negative(text: str, start: int) -> bool:
    if text[start - 1 : start] not in ("-", "\u2212"):
        return False
    before = text[max(start - _LONGEST_NUMBER, 0) : start - 1].rstrip(_EITHER)
    return not before or before[-1].isspace() or before[-1] in _AHEAD_OF_MINUS


def _is_number(text: str, start: int, stop: int) -> bool:
    """Whether what stands between two places, with digits and marks around it, is a part of one number.

    7 is not in 2.7, nor in 7,000; but 1945 is in 08.05.1945, and 2 in 1,2,3.
    """
    before = re.search(r"[\d.,]*$", text[max(start - _LONGEST_NUMBER, 0) : start])
    behind = re.match(r"[\d.,]*", text[stop : stop + _LONGEST_NUMBER])
    around = (before[0] if before else "", behind[0] if behind else "")
    written = text[start:stop].join(around).strip(".,")
    listed = written.count(",") > 1 and not _THOUSANDS.fullmatch(written)
    return _NUMBER.fullmatch(written) is not None and not _DATE.fullmatch(written) and not listed


def _cuts_thousands(text: str, start: int, stop: int) -> bool:
    """Whether one of two places is within a number whose thousands are parted by spaces, as "12" ends in "12 000"."""
    # A name with a number behind it is whole: "Apollo 11 100 kilometres away".
    named = any(map(str.isalpha, text[start:stop]))
    for number in _SPACED.finditer(text, max(start - _LONGEST_NUMBER, 0), stop + _LONGEST_NUMBER):
        begin, end = number.span()
        # "100 200 300" may as well be three numbers; none of several begins with a zero.
        one = not text[begin : begin + 3].isdigit() or re.search(r"\s0", number[0])
        if one and (begin < start < end or (begin < stop < end and not named)):
            return True
    return False
