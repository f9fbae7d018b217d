"""The time split of a window: what feeds profiles only, what trains, what validates, what tests.

    start      train_start              valid_start   test_start     end
      | warm-up     | train                   | valid      | test      |
      |-------------|------------------------ |------------|-----------|
                    ^     ^     ^     ^                    ^           ^    item profiles are cut here (`cuts`)

Times are naive UTC: the log is read as such, because comparing them needs no calendar.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from mrse.config import ProfilesConfig
from mrse.errors import DataError

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Split:
    """The instants that divide the window `[start, end)`, and the cut points of the item profiles.

    Attributes:
        cuts: ascending, without repeats: the training start, every `refresh_days` until the test start, the test start,
            and the end (for serving).
    """

    start: datetime
    train_start: datetime
    valid_start: datetime
    test_start: datetime
    end: datetime
    cuts: tuple[datetime, ...]

    @property
    def valid_asof(self) -> datetime:
        """The profile that validation requests are answered with: a served index is frozen when it is built."""
        return self.asof(self.valid_start)

    def asof(self, at: datetime) -> datetime:
        """The newest cut not after `at`, which must not lie before the training start."""
        return max(cut for cut in self.cuts if cut <= at)

    def days(self) -> list[datetime]:
        """The first instants of the days of the window."""
        return [self.start + number * DAY for number in range((self.end - self.start) // DAY)]

    def spans(self, count: int) -> list[tuple[datetime, datetime]]:
        """The window in about `count` runs of whole days, none longer than another by more than what the last lacks."""
        days = self.days()
        step = -(-len(days) // count)
        starts = days[::step]
        return list(zip(starts, [*starts[1:], self.end], strict=True))


def split_window(start: datetime, end: datetime, config: ProfilesConfig) -> Split:
    """Divide `[start, end)` (aware times) into warm-up, training, validation and test days.

    Raises:
        DataError: the window is not made of whole days, or no training day is left.
    """
    start, end = (time.astimezone(UTC).replace(tzinfo=None) for time in (start, end))
    if any(time.time() != datetime.min.time() for time in (start, end)):
        raise DataError(f"build_profiles: the window {start} to {end} is not made of whole UTC days; see snapshot.json")
    train_start = start + config.warmup_days * DAY
    test_start = end - config.test_days * DAY
    valid_start = test_start - config.valid_days * DAY
    if valid_start <= train_start:
        raise DataError(
            f"build_profiles: the window {start:%Y-%m-%d} to {end:%Y-%m-%d} leaves no training day after "
            f"{config.warmup_days} warm-up, {config.valid_days} validation and {config.test_days} test days; "
            "lengthen snapshot.days or shorten those"
        )
    steps = range(-((train_start - test_start) // (config.refresh_days * DAY)))
    cuts = {train_start + step * config.refresh_days * DAY for step in steps} | {test_start, end}
    return Split(start, train_start, valid_start, test_start, end, tuple(sorted(cuts)))
