"""The length of a training, with its unit: ``"2000 steps"``, ``"3 epochs"``, ``"1.5B tokens"``, ``"90 minutes"``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

from hf_stages.core.did_you_mean import did_you_mean

UNITS = {
    "steps": ("step", "steps", "st"),
    "epochs": ("epoch", "epochs", "ep"),
    "tokens": ("token", "tokens", "tok"),
    "seconds": ("second", "seconds", "s", "sec"),
    "percent": ("%", "percent"),
}
MULTIPLES = {"minute": 60, "minutes": 60, "min": 60, "hour": 3600, "hours": 3600, "h": 3600}
MULTIPLES |= {"day": 86400, "days": 86400}
_SPELLINGS = {spelling: unit for unit, spellings in UNITS.items() for spelling in spellings}
SCALES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_LARGEST = 2**53
"""The largest amount. Above it a float cannot tell two neighbouring whole numbers apart."""
_PATTERN = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([kMBT]?)\s*([A-Za-z]+|%)\s*$")


@dataclass(frozen=True)
class Duration:
    """A number and a unit.

    >>> Duration(2000, "steps")
    Duration(amount=2000.0, unit='steps')
    >>> Duration.parse("1.5B tokens")
    Duration(amount=1500000000.0, unit='tokens')
    >>> str(Duration.parse("90 minutes"))
    '5400 seconds'
    >>> str(Duration.parse("1_500k tokens"))
    '1.5M tokens'
    """

    amount: float
    """How many: above 0."""
    unit: str
    """Steps, epochs, tokens, seconds, or percent of the stage."""

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"Duration: unknown unit {self.unit!r}; expected one of {', '.join(UNITS)}")
        if isinstance(self.amount, bool) or not isinstance(self.amount, Real) or not self.amount > 0:
            raise ValueError(f"Duration: expected a positive amount, got {self.amount} {self.unit}")
        if self.amount > _LARGEST:
            raise ValueError(f"Duration: expected at most {_LARGEST} {self.unit}, got {self.amount:.6g}")
        object.__setattr__(self, "amount", float(self.amount))

    @classmethod
    def parse(cls, text: str | Duration) -> Duration:
        """Read a duration from text. An error says what was found and shows a valid duration."""
        if isinstance(text, Duration):
            return text
        if not isinstance(text, str):
            number = isinstance(text, Real) and not isinstance(text, bool) and 0 < text <= _LARGEST
            unit = f'; write the unit: "{text} steps"' if number else ""
            raise ValueError(f'expected a duration such as "2000 steps", got {text!r}{unit}')
        match = _PATTERN.match(text)
        if match is None:
            raise ValueError(f'expected a number and a unit such as "2000 steps" or "1.5B tokens", got {text!r}')
        number, scale, word = match.groups()
        if (scale + word).lower() in _SPELLINGS | MULTIPLES and scale + word in text:
            scale, word = "", scale + word  # the T of "3 Tokens" is no trillion
        amount = Decimal(number.replace("_", "")) * SCALES[scale]
        if word.lower() in MULTIPLES:
            return cls(float(amount * MULTIPLES[word.lower()]), "seconds")
        unit = _SPELLINGS.get(word.lower())
        if unit is None:
            hint = did_you_mean(word, [*_SPELLINGS, *MULTIPLES], listed=UNITS)
            raise ValueError(f"unknown unit {word!r} in the duration {text!r}; {hint}")
        return cls(float(amount), unit)

    def __str__(self) -> str:
        amount = Decimal(repr(self.amount))
        suffix = ""
        if self.unit == "tokens":
            for letter, scale in reversed(SCALES.items()):
                # Decimal's % fails beyond 28 digits; integer test by to_integral_value does not.
                thousandths = amount / scale * 1000
                if amount >= scale and thousandths == thousandths.to_integral_value():
                    amount, suffix = amount / scale, letter
                    break
        number = format(amount.normalize(), "f")
        return f"{number}{suffix} {'%' if self.unit == 'percent' else self.unit}"


def as_warmup(warmup: Any) -> int | float | Duration:
    """Check a warmup, and parse it where it is text, so that equal warmups are equal objects.

    A warmup is a number of steps, a share below 1, or a duration in steps or percent.

    >>> as_warmup("6 %"), as_warmup(100)
    (Duration(amount=6.0, unit='percent'), 100)
    """
    parsed, hint = warmup, ""
    try:
        parsed = Duration.parse(warmup) if isinstance(warmup, str) else warmup
    except ValueError as error:
        parsed, hint = None, f" ({error})" if "did you mean" in str(error) else ""
    if isinstance(parsed, Duration):
        good = parsed.unit == "steps" or (parsed.unit == "percent" and parsed.amount <= 100)
    else:
        good = isinstance(parsed, Real) and not isinstance(parsed, bool) and 0 <= parsed <= _LARGEST  # type: ignore[operator]
    if not good:
        given = str(warmup) if isinstance(warmup, Duration) else warmup
        raise ValueError(f"warmup: expected steps such as 100, or a share such as 10 %, got {given!r}{hint}")
    return parsed


def warmup_steps(warmup: int | float | str | Duration, total: int) -> int:
    """Return the number of warmup steps within ``total`` steps.

    A warmup is a number of steps (1 or more), a share of ``total`` (below 1), ``"100 steps"`` or ``"6 %"``. Shares are
    rounded up, as Trainer rounds them. Where later stages resume a schedule, ``total`` counts their steps too.

    >>> warmup_steps(0.06, 101), warmup_steps("6 %", 101), warmup_steps("10 steps", 101)
    (7, 7, 10)
    """
    warmup = as_warmup(warmup)
    if isinstance(warmup, Duration):
        return math.ceil(warmup.amount / 100 * total) if warmup.unit == "percent" else round(warmup.amount)
    return math.ceil(warmup * total) if 0 < warmup < 1 else int(warmup)
