"""Conditions on stored fields, in the filter language that Milvus Lite and Milvus share.

Text is compared whole or by range, never by `like`, whose wildcards Milvus 2.3 cannot escape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mrse.errors import DataError

# Stored where the shop gave no price: an index over numbers has no order for NaN, and Milvus 2.3 knows no nulls.
UNKNOWN_PRICE = -1.0
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


@dataclass(frozen=True)
class Filter:
    """Which items may answer; the default lets all through.

    Attributes:
        category: a path such as `Clothing > Dresses`, exactly as the shop writes it; what lies below it counts too.
        min_price, max_price: bounds, both inclusive; an item without a price is within no bound.

    Raises:
        DataError: a bound that is negative or no number, or bounds that leave nothing.
    """

    category: str | None = None
    min_price: float | None = None
    max_price: float | None = None

    def __post_init__(self) -> None:
        for name, bound in (("min_price", self.min_price), ("max_price", self.max_price)):
            if bound is not None and not (math.isfinite(bound) and bound >= 0):
                raise DataError(f"{name} must be a number of at least 0, got {bound}")
        if self.min_price is not None and self.max_price is not None and self.min_price > self.max_price:
            raise DataError(f"min_price {self.min_price:g} is above max_price {self.max_price:g}: nothing can match")

    def expression(self) -> str:
        """The condition as Milvus reads it; empty where all are let through."""
        return " and ".join([*self._category(), *self._price()])

    def _category(self) -> list[str]:
        if self.category is None:
            return []
        # `!` is the character after the space: between the two lie exactly the texts that go on after `category > `.
        first, after = f"{self.category} > ", f"{self.category} >!"
        return [
            f"(category == {quoted(self.category)} or (category >= {quoted(first)} and category < {quoted(after)}))"
        ]

    def _price(self) -> list[str]:
        if self.min_price is None and self.max_price is None:
            return []
        lower = [f"price >= {self.min_price or 0.0!r}"]
        return lower if self.max_price is None else [*lower, f"price <= {float(self.max_price)!r}"]


EVERYTHING = Filter()


def quoted(text: str) -> str:
    """A text literal.

    >>> quoted('6" pot')
    '"6\\\\" pot"'
    """
    return f'"{text.translate(_ESCAPED)}"'


def one_of(item_ids: Iterable[str]) -> str:
    """The condition that an item is one of these."""
    return f"item_id in [{', '.join(map(quoted, item_ids))}]"
