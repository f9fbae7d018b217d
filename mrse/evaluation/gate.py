"""The rule: per-request results in, PROMOTE, HOLD or REJECT out, with every reason as data.

* **REJECT**: the results cannot be trusted (a metric or a request is missing, a value is not a number, another
  window), or the challenger is proven worse, on the whole or on a guardrail by more than its margin.
* **HOLD**: nothing is proven: too few requests or shoppers, the lift's lower bound is not above zero, the lift is below
  delta, or harm on a guardrail cannot be excluded.
* **PROMOTE**: none of these. It says "worth an online A/B test", never more.

The rule reads no file and knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mrse.config import GateConfig
from mrse.evaluation.bootstrap import Floats, Lift, Pair, holm, paired_lifts
from mrse.evaluation.slices import Slices

Outcome = Literal["PROMOTE", "HOLD", "REJECT"]
Kind = Literal["champion", "bm25"]
_SEVERITY: dict[Outcome, int] = {"PROMOTE": 0, "HOLD": 1, "REJECT": 2}
ALL = "all"


@dataclass(frozen=True)
class Window:
    """The frozen requests that both sides must have been scored on.

    Attributes:
        hash: sha256 over the requests and the catalogue.
        request_ids: in order (Q,).
        clusters: the shopper of each request, or its query where no shopper is known (Q,).
        slices: masks over the requests.
    """

    hash: str
    request_ids: Sequence[str]
    clusters: npt.NDArray[np.int64]
    slices: Slices


@dataclass(frozen=True)
class Scored:
    """One system's results.

    Attributes:
        name: what the report calls it.
        window: hash of the window it was scored on.
        request_ids: the requests it was scored on, in order.
        values: per-request values (Q,) by metric.
    """

    name: str
    window: str
    request_ids: Sequence[str]
    values: Mapping[str, Floats]


@dataclass(frozen=True)
class Reason:
    """Why the outcome is what it is: a code for machines, a sentence for people, and the numbers behind it."""

    code: str
    outcome: Outcome
    message: str
    slice: str | None = None
    numbers: Mapping[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As it stands in `decision.json`."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Verdict:
    """What the rule says.

    Attributes:
        outcome: that of the worst reason.
        reasons: worst first.
        primary: the lift over all requests.
        slices: the lift on every slice that the window has.
    """

    outcome: Outcome
    reasons: tuple[Reason, ...]
    primary: Lift | None
    slices: Mapping[str, Lift]


def decide(
    config: GateConfig,
    window: Window,
    challenger: Scored,
    reference: Scored,
    kind: Kind,
    metric: str,
    concerns: Sequence[Reason] = (),
) -> Verdict:
    """Apply the rule.

    Args:
        config: thresholds and guardrails.
        window: what both sides were asked.
        challenger: the new model's results.
        reference: the champion's results, or BM25's where there is no champion.
        kind: which of the two the reference is.
        metric: the primary metric's key in `Scored.values`.
        concerns: reasons found before scoring, such as a champion that could not be read.

    Returns:
        The verdict. It is a REJECT without figures where the results cannot be trusted.
    """
    broken = [*_untrusted(window, challenger, metric), *_untrusted(window, reference, metric)]
    if broken:
        return _verdict([*concerns, *broken], None, {})
    lifts = slice_lifts(config, window, challenger.values[metric], reference.values[metric])
    primary = lifts.pop(ALL)
    reasons = [
        *concerns,
        *_judge_primary(config, primary, reference.name),
        *_judge_guardrails(config, window.slices, lifts),
    ]
    if kind == "bm25":
        message = f"There is no champion to compare with, so the reference is {reference.name}."
        reasons.append(Reason("first_run", "PROMOTE", message))
    return _verdict(reasons, primary, lifts)


def slice_lifts(config: GateConfig, window: Window, challenger_Q: Floats, reference_Q: Floats) -> dict[str, Lift]:
    """The lift over all requests (`ALL`) and within every slice that the window has."""
    pairs = {ALL: Pair(challenger_Q, reference_Q)}
    for name, mask_Q in window.slices.masks.items():
        pairs[name] = Pair(np.where(mask_Q, challenger_Q, np.nan), np.where(mask_Q, reference_Q, np.nan))
    return paired_lifts(
        pairs,
        window.clusters,
        alpha=config.alpha,
        resamples=config.resamples,
        seed=config.seed,
        min_clusters=config.min_clusters,
        delta=config.delta,
    )


@dataclass(frozen=True)
class SliceClaim:
    """Whether a slice counts as improved or worsened, among all slices that could have been.

    Attributes:
        p: Holm's adjusted p-value, two-sided; `None` where the slice has no interval.
        improved: the lift is above zero and `p` at most alpha.
        worsened: the lift is below zero and `p` at most alpha.
    """

    p: float | None
    improved: bool
    worsened: bool


def slice_claims(slices: Mapping[str, Lift], alpha: float) -> dict[str, SliceClaim]:
    """What may be claimed of each slice: that any improved or worsened is wrong with a chance of at most alpha."""
    adjusted = holm({name: lift.p for name, lift in slices.items() if lift.p is not None})
    return {name: _claim(lift, adjusted.get(name), alpha) for name, lift in slices.items()}


def alpha_of_look(alpha: float, look: int) -> float:
    """The level of the intervals when a window judges its first, second, … challenger.

    An equal model passes an interval of level 1 - a with a chance of a / 2. The levels fall such that these chances add
    up to alpha over any number of looks, and the first look costs nothing.

    >>> [round(alpha_of_look(0.06, look), 4) for look in (1, 2, 3)]
    [0.06, 0.02, 0.01]
    """
    return 2.0 * alpha / (look * (look + 1))


def _claim(lift: Lift, p: float | None, alpha: float) -> SliceClaim:
    lift_shown = lift.lift if lift.lift is not None and p is not None and p <= alpha else 0.0
    return SliceClaim(p, lift_shown > 0, lift_shown < 0)


def _untrusted(window: Window, scored: Scored, metric: str) -> Iterator[Reason]:
    name = scored.name[:1].upper() + scored.name[1:]
    if scored.window != window.hash:
        message = f"{name} was scored on another window ({scored.window[:12]}, not {window.hash[:12]})."
        yield Reason("window_mismatch", "REJECT", message)
        return
    if list(scored.request_ids) != list(window.request_ids):
        message = f"{name} was scored on {len(scored.request_ids)} requests, not the {len(window.request_ids)} asked."
        yield Reason("missing_requests", "REJECT", message)
        return
    if metric not in scored.values:
        yield Reason("missing_metric", "REJECT", f"{name} has no values of the primary metric {metric}.")
        return
    values_Q = scored.values[metric]
    if values_Q.shape != (len(window.request_ids),):
        message = f"{name} has {len(values_Q)} values of {metric} for {len(window.request_ids)} requests."
        yield Reason("missing_requests", "REJECT", message)
        return
    bad = int((~np.isfinite(values_Q)).sum())
    if bad:
        message = f"{name}: {metric} is not a finite number for {bad} of {len(values_Q)} requests."
        yield Reason("not_finite", "REJECT", message, numbers={"requests": bad})


def _judge_primary(config: GateConfig, lift: Lift, reference: str) -> Iterator[Reason]:
    if lift.requests < config.min_requests:
        message = f"The window has {lift.requests} requests; gate.min_requests is {config.min_requests}."
        yield Reason("too_few_requests", "HOLD", message, numbers={"requests": lift.requests})
        return
    if lift.lift is None or lift.lower is None or lift.upper is None:
        message = (
            f"The requests come from {lift.clusters} shoppers or queries; no interval is drawn from fewer than "
            f"gate.min_clusters = {config.min_clusters}."
        )
        yield Reason("too_few_clusters", "HOLD", message, numbers={"clusters": lift.clusters})
        return
    numbers = {"lift": lift.lift, "lower": lift.lower, "upper": lift.upper}
    spread = f"{lift.lift:+.4f} [{lift.lower:+.4f}, {lift.upper:+.4f}]"
    if lift.upper < 0:
        message = f"The challenger is worse than {reference}: {spread}."
        yield Reason("worse_than_reference", "REJECT", message, numbers=numbers)
    elif lift.lower <= 0:
        message = f"No gain over {reference} is shown: {spread}; this window could have shown a gain of {lift.mde:.4f}."
        yield Reason("no_proven_lift", "HOLD", message, numbers=numbers)
    elif lift.lift < config.delta:
        message = f"The gain over {reference}, {spread}, is below gate.delta = {config.delta:g}."
        yield Reason("lift_below_delta", "HOLD", message, numbers=numbers)
    else:
        message = f"The gain over {reference}, {spread}, is above zero and at least gate.delta = {config.delta:g}."
        yield Reason("proven_lift", "PROMOTE", message, numbers=numbers)


def _judge_guardrails(config: GateConfig, slices: Slices, lifts: Mapping[str, Lift]) -> Iterator[Reason]:
    for name, margin in sorted(config.guardrails.items()):
        yield _judge_guardrail(config, slices, lifts.get(name), name, margin)


def _judge_guardrail(config: GateConfig, slices: Slices, lift: Lift | None, name: str, margin: float) -> Reason:
    if lift is None:
        why = slices.unavailable.get(name, "the window does not define it")
        if name in config.not_applicable:
            return Reason("guardrail_not_applicable", "PROMOTE", f"Guardrail {name} does not apply: {why}.", name)
        message = f"Guardrail {name} cannot be measured: {why} (a shop without it lists it in gate.not_applicable)."
        return Reason("guardrail_unavailable", "HOLD", message, name)
    if lift.requests < config.min_slice or lift.lift is None or lift.lower is None or lift.upper is None:
        message = (
            f"Guardrail {name} is too small to tell: {lift.requests} requests of {lift.clusters} shoppers or queries; "
            f"gate.min_slice is {config.min_slice}, gate.min_clusters {config.min_clusters}."
        )
        return Reason("guardrail_too_small", "HOLD", message, name, {"requests": lift.requests})
    numbers = {"lift": lift.lift, "lower": lift.lower, "upper": lift.upper, "margin": margin}
    spread = f"{lift.lift:+.4f} [{lift.lower:+.4f}, {lift.upper:+.4f}]"
    if lift.upper < -margin:
        message = f"Guardrail {name} falls by more than its margin of {margin:g}: {spread}."
        return Reason("guardrail_harmed", "REJECT", message, name, numbers)
    if lift.lower < -margin:
        message = f"Guardrail {name}: a fall past its margin of {margin:g} cannot be excluded: {spread}."
        return Reason("guardrail_not_excluded", "HOLD", message, name, numbers)
    return Reason("guardrail_held", "PROMOTE", f"Guardrail {name} holds: {spread}.", name, numbers)


def _verdict(reasons: Sequence[Reason], primary: Lift | None, slices: Mapping[str, Lift]) -> Verdict:
    ordered = tuple(sorted(reasons, key=lambda reason: -_SEVERITY[reason.outcome]))
    return Verdict(ordered[0].outcome, ordered, primary, dict(slices))
