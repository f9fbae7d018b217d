"""Who shops: tastes that last, so that what a shopper clicked tells what the next one will be.

Taste is a utility per (shopper, item): favourite colours and patterns (looks), favourite materials, usages and brands
(words), a price level, the right gender. A preference for looks or for words weighs the two halves and decides how the
shopper asks: people of words type full queries, people of looks type "shirt" and choose by eye.
Arrays: U shoppers, R requests, L slots. A shopper's row depends on the seed and the day he joined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrse.config import MarketplaceConfig
from mrse.data.marketplace import draws
from mrse.data.marketplace.catalogue import ATTRIBUTES, Catalogue

# Utility of the first, second and third favourite of an attribute, and of all others.
_FAVOURITES: dict[str, tuple[tuple[float, ...], float]] = {
    "colour": ((3.0, 2.3, 0.8), -1.2),
    "pattern": ((1.3, 0.6), -0.6),
    "material": ((0.6, 0.3), -0.2),
    "usage": ((1.0,), -0.3),
}
LOOKS: tuple[str, ...] = ("colour", "pattern")
_BRAND_SHARE, _BRAND_LOVED, _BRAND_OTHER = 0.12, 1.3, -0.15
_PRICE_WEIGHT = 0.3
_WRONG_GENDER = -3.5
_TYPE_SPREAD = 0.9
_FASHION_SWING = 0.4


@dataclass(frozen=True)
class Shoppers:
    """Everybody who joined before the end of a window, in the order of joining.

    Attributes:
        ids_U: the hash that their frozen tastes (brands, types) are drawn from; the number of the shopper.
        joined_U: the day they joined.
        activity_U: how often they come, heavy-tailed.
        looks_U: 0 (asks by words) to 1 (chooses by looks).
        price_level_U: the price they like, in standard deviations of the type.
        gender_U: code of the gender they shop for; −1 where the catalogue has no genders.
        affinity: per attribute with favourites, (U, values + 1); the last column is for "has none".
    """

    ids_U: draws.Int
    joined_U: draws.Int
    activity_U: draws.Float
    looks_U: draws.Float
    price_level_U: draws.Float
    gender_U: draws.Int
    affinity: dict[str, npt.NDArray[np.float32]]


def gather(config: MarketplaceConfig, catalogue: Catalogue, end_day: int) -> Shoppers:
    """The shoppers who joined before `end_day` (a proleptic ordinal)."""
    first = config.opens.toordinal()
    per_day = round(config.shoppers * config.new_shoppers_per_day)
    sizes = [(first - 1, config.shoppers)] + [(day, per_day) for day in range(first, end_day) if per_day]
    blocks = [_block(config, catalogue, day, count) for day, count in sizes]
    joined_U = np.concatenate([np.full(count, day) for day, count in sizes])
    return Shoppers(
        ids_U=np.arange(len(joined_U)),
        joined_U=joined_U,
        activity_U=np.concatenate([b["activity"] for b in blocks]),
        looks_U=np.concatenate([b["looks"] for b in blocks]),
        price_level_U=np.concatenate([b["price_level"] for b in blocks]),
        gender_U=np.concatenate([b["gender"] for b in blocks]).astype(np.int64),
        affinity={name: np.concatenate([b[name] for b in blocks]).astype(np.float32) for name in _FAVOURITES},
    )


def _block(config: MarketplaceConfig, catalogue: Catalogue, day: int, count: int) -> dict[str, npt.NDArray[np.generic]]:
    rng = draws.stream(config.seed, draws.SHOPPERS, day)
    block: dict[str, npt.NDArray[np.generic]] = {
        "activity": np.minimum(rng.lognormal(0.0, 0.7, count), 8.0),
        "looks": rng.beta(0.9, 0.9, count),
        "price_level": rng.normal(0.0, 0.9, count),
        "gender": _genders(catalogue, rng.random(count)),
    }
    for name in _FAVOURITES:
        block[name] = _affinities(catalogue, name, rng, count)
    return block


def _genders(catalogue: Catalogue, u: draws.Float) -> draws.Int:
    """Women or men, whatever the catalogue calls them; −1 where it does not say."""
    names = [forms[0] for forms in catalogue.words[ATTRIBUTES.index("gender")]]
    choices = [code for code, name in enumerate(names) if "unisex" not in name]
    if not choices:
        return np.full(len(u), -1)
    return np.asarray(np.array(choices)[(u * len(choices)).astype(np.int64)])


def _affinities(catalogue: Catalogue, name: str, rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Favourites drawn by how common a value is among the opening stock, but rare ones have their lovers too."""
    levels, other = _FAVOURITES[name]
    size = catalogue.size(name)
    affinity = np.full((count, size + 1), other)
    affinity[:, size] = 0.0
    if size:
        liking = 0.5 * np.log(catalogue.stock[ATTRIBUTES.index(name)] + 1.0) + draws.gumbel(rng.random((count, size)))
        order = np.argsort(-liking, axis=1)[:, : len(levels)]
        np.put_along_axis(affinity, order, np.asarray(levels[: order.shape[1]])[None, :], axis=1)
    return affinity


@dataclass(frozen=True)
class Fashion:
    """What is in demand on a day: additive utilities per value of an attribute, the last entry for "has none"."""

    type_T: draws.Float
    colour_C: draws.Float
    pattern_P: draws.Float


def fashion_of(config: MarketplaceConfig, catalogue: Catalogue, day: int) -> Fashion:
    """The demand of a day: every value comes into fashion and goes out of it at a rhythm of its own (18 to 50 days)."""

    def waves(salt: int, size: int) -> draws.Float:
        value = np.arange(size)
        period = 18.0 + 32.0 * draws.uniform(config.seed, draws.FASHION, salt, value)
        phase = draws.uniform(config.seed, draws.FASHION, salt + 1, value)
        return np.append(_FASHION_SWING * np.sin(2 * np.pi * (day / period + phase)), 0.0)

    return Fashion(
        type_T=waves(0, catalogue.size("type")),
        colour_C=waves(10, catalogue.size("colour")),
        pattern_P=waves(20, catalogue.size("pattern")),
    )


def taste(
    config: MarketplaceConfig,
    catalogue: Catalogue,
    shoppers: Shoppers,
    fashion: Fashion,
    user_R: draws.Int,
    item_RL: draws.Int,
) -> draws.Float:
    """How much each shopper likes each item, before what he asked for: utility (R, L), mean near 0.

    Args:
        user_R: rows of the shoppers.
        item_RL: rows of the items; negative ones give whatever item 0 gives.
    """
    items = np.maximum(item_RL, 0)
    looks_R1 = shoppers.looks_U[user_R][:, None]
    by_looks, by_words = 0.7 + 0.6 * looks_R1, 1.3 - 0.6 * looks_R1
    utility = np.zeros(items.shape)
    for name, affinity in shoppers.affinity.items():
        if catalogue.size(name):
            weight = by_looks if name in LOOKS else by_words
            utility += weight * affinity[user_R[:, None], catalogue.codes(name)[items]]
    utility += by_words * brand_taste(config, catalogue, shoppers, user_R, items)
    utility -= _PRICE_WEIGHT * (np.abs(catalogue.price_level_N[items] - shoppers.price_level_U[user_R][:, None]) - 1.0)
    utility += fashion.colour_C[catalogue.codes("colour")[items]] + fashion.pattern_P[catalogue.codes("pattern")[items]]
    utility += 0.15 * np.log(catalogue.popularity_N[items])
    return np.asarray(utility + _WRONG_GENDER * _wrong_gender(catalogue, shoppers, user_R, items))


def brand_taste(
    config: MarketplaceConfig, catalogue: Catalogue, shoppers: Shoppers, user_R: draws.Int, item_RL: draws.Int
) -> draws.Float:
    """Utility of the brand: a frozen coin per (shopper, brand), so that any number of brands costs no memory."""
    if not catalogue.size("brand"):
        return np.zeros(item_RL.shape)
    brand = catalogue.codes("brand")[item_RL]
    loved = draws.uniform(config.seed, draws.BRAND_TASTE, shoppers.ids_U[user_R][:, None], brand) < _BRAND_SHARE
    return np.asarray(np.where(brand < 0, 0.0, np.where(loved, _BRAND_LOVED, _BRAND_OTHER)))


def type_taste(config: MarketplaceConfig, catalogue: Catalogue, shoppers: Shoppers, user_R: draws.Int) -> draws.Float:
    """How much each shopper shops for each type: log-weights (R, types)."""
    types = np.arange(catalogue.size("type"))
    return _TYPE_SPREAD * draws.gaussian(config.seed, draws.TYPE_TASTE, shoppers.ids_U[user_R][:, None], types)


def _wrong_gender(
    catalogue: Catalogue, shoppers: Shoppers, user_R: draws.Int, item_RL: draws.Int
) -> npt.NDArray[np.bool_]:
    genders = [forms[0] for forms in catalogue.words[ATTRIBUTES.index("gender")]]
    fits_all = np.array([*("unisex" in name for name in genders), True])
    code = catalogue.codes("gender")[item_RL]
    mine = shoppers.gender_U[user_R][:, None]
    return np.asarray((mine >= 0) & (code != mine) & ~fits_all[code])
