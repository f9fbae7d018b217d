"""How figures are written in Markdown: three digits, a true minus sign, a dash for what the data cannot give."""

from __future__ import annotations


def signed(value: float | None) -> str:
    """A difference.

    >>> signed(-0.0123), signed(None)
    ('−0.012', '–')
    """
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def plain(value: float | None) -> str:
    """A mean.

    >>> plain(0.5)
    '0.500'
    """
    return "–" if value is None else f"{value:.3f}"


def change(lift: float | None, lower: float | None, upper: float | None) -> str:
    """A difference with its interval.

    >>> change(0.1, 0.05, 0.15)
    '+0.100 [+0.050, +0.150]'
    """
    if lower is None or upper is None:
        return f"{signed(lift)} [too few shoppers]"
    return f"{signed(lift)} [{signed(lower)}, {signed(upper)}]"


def level(alpha: float) -> str:
    """The level of an interval.

    >>> level(0.05), level(0.05 / 3)
    ('95%', '98.33%')
    """
    return f"{100 * (1 - alpha):.4g}%"


def shown(metric: str) -> str:
    """A metric's name for people.

    >>> shown("recall_at_50")
    'recall@50'
    """
    return metric.replace("_at_", "@")


def made_up(note: str) -> str:
    """The note of simulated data (`SnapshotMeta.note`) as the sentence after "Simulated data.".

    >>> made_up("Simulated: all is made up.")
    'All is made up.'
    """
    text = note.removeprefix("Simulated: ")
    return text[:1].upper() + text[1:]
