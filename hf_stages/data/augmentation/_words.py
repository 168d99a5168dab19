"""Finds the words of a text that may be replaced, and replaces them."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

# Whole words of letters: no numbers, no part of a name like x2, no part of don't or o'clock.
_WORD = re.compile(r"(?<!\w)(?<!\w['\u2019])[^\W\d_]{2,}(?!\w|['\u2019]t\b)")

_ENGLISH = """
the an this that these those some any each every either neither no none both all several many much more most few
fewer less least such other another same own one
me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
it its itself they them their theirs themselves someone somebody something anyone anybody anything everyone everybody
everything nobody nothing
who whom whose which what when where why how whoever whatever whichever whenever wherever
and or but nor so yet if unless until till while because since although though whereas whether than as
of in on at by to for from with without within into onto out off up down over under above below between among
through during before after against about across along around behind beside besides beyond near toward towards upon
via per except despite
is am are was were be been being do does did doing done has have had having can could may might must shall should
will would ought cannot
not never very too also just only even still then there here now again ever once quite rather almost
ain aren couldn didn doesn hadn hasn haven isn mightn mustn needn shan shouldn wasn weren wouldn re ll ve
"""
STOPWORDS = frozenset(_ENGLISH.split())
"""English words that carry a sentence's grammar or reverse its meaning."""


class Word(NamedTuple):
    """One word that may be replaced: its place in the text, and its candidates."""

    start: int
    end: int
    text: str
    candidates: tuple[str, ...] = ()


def words_in(text: str, stopwords: Collection[str] = STOPWORDS) -> list[Word]:
    """Return the words of a text that may be replaced.

    >>> [word.text for word in words_in("What's the capital of Peru in 1990?")]
    ['capital', 'Peru']
    >>> words_in("It won't, o'clock x2 café\u0301")
    []
    """
    found = [Word(m.start(), m.end(), m[0]) for m in _WORD.finditer(text)]
    return [word for word in found if word.text.casefold() not in stopwords and not _followed_by_mark(text, word)]


def is_usable_word(word: str, stopwords: Collection[str]) -> bool:
    """Return whether a word may replace another: it has letters only and is no stopword."""
    return len(word) > 1 and word.isalpha() and word.casefold() not in stopwords


def pick_candidates(word: str, ranked: Iterable[str], k: int) -> tuple[str, ...]:
    """Return the first ``k`` words that differ from ``word``, in its upper or lower case.

    They are sorted by the alphabet. Floats that differ in their last bits may change the ranking, which must not change
    what is drawn.

    >>> pick_candidates("Paris", ["paris", "rome", "Rome", "oslo", "bonn"], 2)
    ('Oslo', 'Rome')
    """
    found: dict[str, str] = {}
    for other in ranked:
        if len(found) == k:
            break
        if other.casefold() != word.casefold():
            found.setdefault(other.casefold(), _cased(other, word))
    return tuple(found[key] for key in sorted(found))


def replace_words(text: str, words: Sequence[Word], p: float, seed: int) -> str:
    """Return the text with each word replaced, with probability ``p``, by one of its candidates, all equally likely."""
    draw = random.Random(seed)
    parts, end = [], 0
    for word in words:
        replace, which = (
            draw.random() < p,
            draw.random(),
        )  # both are always drawn, so that one word does not change the next
        if replace and word.candidates:
            parts += [text[end : word.start], word.candidates[int(which * len(word.candidates))]]
            end = word.end
    return "".join([*parts, text[end:]])


def _cased(other: str, word: str) -> str:
    if word.isupper():
        return other.upper()
    return other[0].upper() + other[1:] if word[0].isupper() else other


def _followed_by_mark(text: str, word: Word) -> bool:
    """Return whether a combining mark follows. A mark is no letter, so the letters are then not the whole word."""
    return word.end < len(text) and unicodedata.category(text[word.end]).startswith("M")
