"""Numbers as people read them."""

from __future__ import annotations


def short(value: float) -> str:
    """Three digits and a letter: 950, 20.5k, 4M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:  # 999,600 is 1M, not 1e+03k
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}" if abs(value) > 1e-12 else "0"


def duration(seconds: float) -> str:
    """A time in its largest unit: 40 s, 12 min, 5 h, 3 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def rounded(value: float | None) -> str:
    """A return or a speed in a table: 1,204 or 0.731, and - where there is none."""
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
