"""What the simulated shop sells: an invented catalogue, or a given one with label columns.

Every item is a row of codes, one per attribute (−1: it has none), beside its title. Codes are known to the simulator
alone: shoppers judge by them, titles and pictures tell a part of them, and no table for a model holds them.
An item's row depends on the seed and the day it was listed, so a longer window only appends items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrse.config import MarketplaceConfig
from mrse.data.contract import ITEMS, TIME, conform, conformed_schema
from mrse.data.marketplace import draws, lexicon
from mrse.data.marketplace.titles import Noise, write_title
from mrse.data.uris import read_errors
from mrse.errors import ConfigError, DataError

Codes = npt.NDArray[np.int32]

# `group` is the upper levels of the category; a query for a whole group names no type.
ATTRIBUTES: tuple[str, ...] = ("type", "group", "colour", "pattern", "material", "brand", "gender", "usage")
_POPULARITY_EXPONENT = 0.75  # of the Pareto draws: the items' demand is Zipf-like
_US_PER_DAY = 86_400_000_000


@dataclass(frozen=True)
class Catalogue:
    """All items listed before the end of a window, sorted by `item_id`. N items, A attributes.

    Attributes:
        item_ids, titles: N strings each.
        hash_N: a hash of each id; frozen dice are thrown by it, as rows move when a given catalogue grows.
        codes_AN: the code of every attribute, in the order of `ATTRIBUTES`; −1 where the item has none.
        words: per attribute and code what people call it, the usual word first.
        near: per attribute, the pairs of codes that half satisfy each other (navy for blue).
        stock: per attribute, how many items of the opening stock have each value (a given catalogue: of all its items).
        group_of_type: the group that most items of a type belong to; −1 where the catalogue has no categories.
        popularity_N: demand, heavy-tailed, mean about 1.
        price_level_N: how dear the item is for its type, in standard deviations; 0 where there is no price.
        listed_N: the day (proleptic ordinal) it was listed; shoppers meet it from the next day on.
        table: the rows of `items.parquet`.
        forgotten: per item the attributes that its title does not tell; empty for a given catalogue.
    """

    item_ids: list[str]
    titles: list[str]
    hash_N: draws.Hash
    codes_AN: Codes
    words: tuple[tuple[tuple[str, ...], ...], ...]
    near: tuple[npt.NDArray[np.bool_], ...]
    stock: tuple[draws.Int, ...]
    group_of_type: draws.Int
    popularity_N: draws.Float
    price_level_N: draws.Float
    listed_N: draws.Int
    table: pa.Table
    forgotten: list[tuple[str, ...]]

    def codes(self, attribute: str) -> Codes:
        """The codes of one attribute, shape (N,)."""
        return np.asarray(self.codes_AN[ATTRIBUTES.index(attribute)])

    def size(self, attribute: str) -> int:
        """How many values an attribute has."""
        return len(self.words[ATTRIBUTES.index(attribute)])

    def usual_word(self, attribute: str, code: int) -> str:
        """What people usually call a value of an attribute."""
        return self.words[ATTRIBUTES.index(attribute)][code][0]


def open_catalogue(config: MarketplaceConfig, end: date) -> Catalogue:
    """The catalogue as of the end of a window.

    Args:
        config: the shop; a given catalogue is read when `config.catalogue` is set.
        end: the first day after the window: items listed from then on are left out.

    Raises:
        DataError: a given catalogue is missing, unreadable or lacks the label columns.
    """
    return _given(config, end) if config.catalogue else _invented(config, end)


# --- an invented catalogue ---------------------------------------------------------------------------------------


def _invented(config: MarketplaceConfig, end: date) -> Catalogue:
    first = config.opens.toordinal()
    per_day = round(config.items * config.new_items_per_day)
    blocks = [_block(config, first - 1, config.items)]
    blocks += [_block(config, day, per_day) for day in range(first, end.toordinal()) if per_day]
    codes_AN = np.concatenate([block.codes_AN for block in blocks], axis=1)
    level_N = np.concatenate([block.price_level_N for block in blocks])
    listed_N = np.concatenate([np.full(block.codes_AN.shape[1], block.day) for block in blocks])
    count = codes_AN.shape[1]
    item_ids = [f"i{i:07d}" for i in range(count)]
    titles, forgotten = _titles(config, codes_AN)
    table = pa.table(
        {
            "item_id": item_ids,
            "title": titles,
            "category": _category_names(codes_AN),
            "price": _prices(codes_AN, level_N),
            "image": _image_names(config, item_ids),
            "updated_at": _listing_times(config, listed_N),
        },
        schema=ITEMS,
    )
    return Catalogue(
        item_ids=item_ids,
        titles=titles,
        hash_N=_id_hashes(item_ids),
        codes_AN=codes_AN,
        words=_INVENTED_WORDS,
        near=_near_words(_INVENTED_WORDS),
        stock=_counts(blocks[0].codes_AN, _INVENTED_WORDS),
        group_of_type=_TYPE_GROUPS,
        popularity_N=np.concatenate([block.popularity_N for block in blocks]),
        price_level_N=level_N,
        listed_N=listed_N,
        table=table,
        forgotten=forgotten,
    )


@dataclass(frozen=True)
class _Block:
    """The items listed on one day."""

    day: int
    codes_AN: Codes
    popularity_N: draws.Float
    price_level_N: draws.Float


_GROUPS = tuple(dict.fromkeys(kind.group for kind in lexicon.TYPES))
_TYPE_GROUPS = np.array([_GROUPS.index(kind.group) for kind in lexicon.TYPES])
_MATERIALS = tuple(dict.fromkeys(name for kind in lexicon.TYPES for name in kind.materials))
_COLOURS = tuple(lexicon.COLOURS)
_PATTERNS = tuple(lexicon.PATTERNS)
_TYPE_SHARES = 1.0 / (np.arange(len(lexicon.TYPES)) + 5.0)
_BRAND_SHARES = 1.0 / (np.arange(len(lexicon.BRANDS)) + 4.0)


def _block(config: MarketplaceConfig, day: int, count: int) -> _Block:
    rng = draws.stream(config.seed, draws.ITEMS, day)
    u = rng.random((8, count))
    types = _pick(np.broadcast_to(_TYPE_SHARES, (count, len(_TYPE_SHARES))), u[0])
    patterned = np.array([kind.patterned for kind in lexicon.TYPES])[types]
    pattern = _pick(np.broadcast_to([share for _, share in lexicon.PATTERNS.values()], (count, len(_PATTERNS))), u[1])
    colour = _pick(np.broadcast_to([share for *_, share in lexicon.COLOURS.values()], (count, len(_COLOURS))), u[2])
    groups = _TYPE_GROUPS[types]
    brand = _pick(_brand_shares()[types], u[3])
    level = 0.75 * _BRAND_LEVEL[brand] + 0.65 * rng.standard_normal(count)
    codes = {
        "type": types,
        "group": groups,
        "colour": colour,
        "pattern": np.where(patterned, pattern, -1),
        "material": _pick(_material_shares()[types], u[4]),
        "brand": brand,
        "gender": _pick(np.array([kind.genders for kind in lexicon.TYPES])[types], u[5]),
        "usage": np.full(count, -1),
    }
    return _Block(
        day=day,
        codes_AN=np.stack([codes[name] for name in ATTRIBUTES]).astype(np.int32),
        popularity_N=_popularity(u[6]),
        price_level_N=level,
    )


# Brands have a price level of their own, the same in every shop.
_BRAND_LEVEL = draws.gaussian(draws.BRAND_RANGE, np.arange(len(lexicon.BRANDS)))


def _brand_shares() -> draws.Float:
    """Shares of the brands per type: a brand works in about a third of the groups."""
    in_group = draws.uniform(draws.BRAND_RANGE, np.arange(len(_GROUPS))[:, None], np.arange(len(lexicon.BRANDS))) < 0.35
    return np.asarray(np.where(in_group[_TYPE_GROUPS], _BRAND_SHARES, 1e-4))


def _material_shares() -> draws.Float:
    shares = np.zeros((len(lexicon.TYPES), len(_MATERIALS)))
    for row, kind in enumerate(lexicon.TYPES):
        for place, name in enumerate(kind.materials):
            shares[row, _MATERIALS.index(name)] = 0.6**place
    return shares


def _pick(shares_NK: npt.ArrayLike, u_N: draws.Float) -> draws.Int:
    """One of K values per row, by its row's shares."""
    cumulated = np.cumsum(np.asarray(shares_NK, dtype=np.float64), axis=1)
    return np.asarray((cumulated < (u_N * cumulated[:, -1])[:, None]).sum(axis=1), dtype=np.int64)


def _popularity(u_N: draws.Float) -> draws.Float:
    """Pareto draws, capped so that no item takes over: the k-th most popular of N is wanted like 1 / k^0.75."""
    return np.asarray(np.minimum((1.0 - u_N) ** -_POPULARITY_EXPONENT, 60.0) / 4.0)


def _titles(config: MarketplaceConfig, codes_AN: Codes) -> tuple[list[str], list[tuple[str, ...]]]:
    noise = Noise(config.missing_attribute, config.misspelt_title, config.stuffed_title)
    seeds = draws.hashed(config.seed, draws.TITLES, np.arange(codes_AN.shape[1])).tolist()
    told = [ATTRIBUTES.index(name) for name in ("type", "colour", "pattern", "material", "brand", "gender")]
    rows = codes_AN[told].T.tolist()
    written = []
    for row, seed in zip(rows, seeds, strict=True):
        values = {ATTRIBUTES[a]: _INVENTED_WORDS[a][code][0] for a, code in zip(told, row, strict=True) if code >= 0}
        written.append(write_title(values, noise, seed))
    return [title for title, _ in written], [forgotten for _, forgotten in written]


def _category_names(codes_AN: Codes) -> list[str]:
    names = [f"{kind.group} > {kind.forms[0].title()}" for kind in lexicon.TYPES]
    return [names[code] for code in codes_AN[ATTRIBUTES.index("type")].tolist()]


def _prices(codes_AN: Codes, level_N: draws.Float) -> draws.Float:
    typical = np.array([kind.price for kind in lexicon.TYPES])[codes_AN[ATTRIBUTES.index("type")]]
    return np.asarray(np.maximum(np.round(typical * np.exp(0.4 * level_N)), 2.0) - 0.01)


def _image_names(config: MarketplaceConfig, item_ids: Sequence[str]) -> list[str | None]:
    lacking = draws.uniform(config.seed, draws.PICTURES, np.arange(len(item_ids))) < config.missing_picture
    return [None if none else f"{item_id}.png" for item_id, none in zip(item_ids, lacking.tolist(), strict=True)]


def _listing_times(config: MarketplaceConfig, listed_N: draws.Int) -> pa.Array:
    """Some instant of the day of listing; the stock the shop opened with was listed over the year before."""
    u = draws.uniform(config.seed, draws.ITEMS, np.arange(len(listed_N)))
    epoch = date(1970, 1, 1).toordinal()
    days_back = np.where(listed_N < config.opens.toordinal(), u * 365.0, 0.0)
    moment = (listed_N - epoch + u - days_back) * _US_PER_DAY
    return pa.array(moment.astype(np.int64), TIME)


_INVENTED_WORDS: tuple[tuple[tuple[str, ...], ...], ...] = (
    tuple(kind.forms for kind in lexicon.TYPES),
    tuple(lexicon.GROUP_WORDS.get(group, ()) for group in _GROUPS),
    tuple(forms for forms, *_ in lexicon.COLOURS.values()),
    tuple(forms for forms, _ in lexicon.PATTERNS.values()),
    tuple((name,) for name in _MATERIALS),
    tuple((name,) for name in lexicon.BRANDS),
    tuple(lexicon.GENDERS.values()),
    (),
)


# --- a given catalogue -------------------------------------------------------------------------------------------


def _given(config: MarketplaceConfig, end: date) -> Catalogue:
    table = _read_given(config)
    if "type" not in config.labels:
        raise ConfigError("marketplace.labels: names no column for 'type'; the simulator needs to know what an item is")
    missing = sorted(column for column in config.labels.values() if column not in table.column_names)
    if missing:
        raise DataError(
            f"{config.catalogue}: lacks the label column {missing[0]!r} named by marketplace.labels; "
            f"it has {', '.join(map(repr, table.column_names))}"
        )
    table = table.filter(pc.is_valid(pc.field("item_id"))).sort_by("item_id")
    # Codes come from the whole catalogue, so that a label met later does not renumber those of earlier windows.
    codes, words = _given_codes(config, table)
    levels_N = _price_levels(table["price"], codes[ATTRIBUTES.index("type")])
    listed_N = _given_listing(config, table)
    kept = listed_N < end.toordinal()
    table = table.filter(pa.array(kept))
    if table.num_rows == 0:
        raise DataError(f"{config.catalogue}: no item is listed before {end}; move snapshot.end or mend updated_at")
    item_ids = table["item_id"].to_pylist()
    hash_N = _id_hashes(item_ids)
    return Catalogue(
        item_ids=item_ids,
        titles=[title or "" for title in table["title"].to_pylist()],
        hash_N=hash_N,
        codes_AN=codes[:, kept],
        words=words,
        near=_near_words(words),
        stock=_counts(codes, words),
        group_of_type=_commonest_groups(codes, len(words[ATTRIBUTES.index("type")])),
        popularity_N=_popularity(draws.uniform(config.seed, draws.ITEMS, hash_N)),
        price_level_N=levels_N[kept],
        listed_N=listed_N[kept],
        table=table.drop_columns(sorted(set(config.labels.values()) & set(table.column_names) - set(ITEMS.names))),
        forgotten=[()] * len(item_ids),
    )


def _read_given(config: MarketplaceConfig) -> pa.Table:
    where = str(config.catalogue)
    try:
        with fsspec.open(where, "rb") as file:
            raw = pq.read_table(file)
    except FileNotFoundError:
        raise DataError(f"{where}: no such file; set marketplace.catalogue to the items of a catalogue") from None
    except (pa.ArrowInvalid, *read_errors()) as error:
        raise DataError(f"{where}: not a readable Parquet file ({error}); check marketplace.catalogue") from None
    schema = conformed_schema(raw.schema, "items", where)
    return pa.Table.from_batches([conform(batch, schema, where) for batch in raw.to_batches()], schema)


def _given_listing(config: MarketplaceConfig, table: pa.Table) -> draws.Int:
    """The day of `updated_at`; items without one were there when the shop opened."""
    days = pc.cast(pc.cast(table["updated_at"], pa.int64()), pa.float64()).to_numpy() / _US_PER_DAY
    epoch = date(1970, 1, 1).toordinal()
    before = config.opens.toordinal() - 1
    return np.asarray(np.where(np.isnan(days), before, np.floor(np.nan_to_num(days)) + epoch), dtype=np.int64)


def _given_codes(config: MarketplaceConfig, table: pa.Table) -> tuple[Codes, tuple[tuple[tuple[str, ...], ...], ...]]:
    codes: list[npt.NDArray[np.int32]] = []
    words: list[tuple[tuple[str, ...], ...]] = []
    for attribute in ATTRIBUTES:
        column = _upper_category(table) if attribute == "group" else _label(config, table, attribute)
        names = sorted(set(column) - {None})  # type: ignore[type-var]
        place: dict[str | None, int] = {name: i for i, name in enumerate(names)}
        codes.append(np.array([place.get(name, -1) for name in column], dtype=np.int32))
        if attribute == "group":
            words.append(tuple(lexicon.GROUP_WORDS.get(str(name), ()) for name in names))
        else:
            words.append(tuple(_label_words(str(name)) for name in names))
    return np.stack(codes), tuple(words)


def _label(config: MarketplaceConfig, table: pa.Table, attribute: str) -> list[str | None]:
    if attribute not in config.labels:
        return [None] * table.num_rows
    return [
        str(value).strip() or None if value is not None else None
        for value in table[config.labels[attribute]].to_pylist()
    ]


def _upper_category(table: pa.Table) -> list[str | None]:
    return [value.rsplit(" > ", 1)[0] if value and " > " in value else None for value in table["category"].to_pylist()]


def _label_words(label: str) -> tuple[str, ...]:
    """What people call a shop's label: "Tshirts" is asked for as tshirt, tee or tshirts."""
    usual = label.lower()
    single = usual[:-1] if usual.endswith("s") and not usual.endswith("ss") else usual
    known = lexicon.LABEL_FORMS.get(single)
    if known:
        return tuple(dict.fromkeys((*known, usual)))
    return (usual, single) if single != usual else (usual,)


def _price_levels(prices: pa.ChunkedArray, types_N: Codes) -> draws.Float:
    """log price against the other items of the type, in standard deviations; 0 where it is not known."""
    values = np.nan_to_num(pc.fill_null(prices, 0.0).to_numpy(), nan=0.0, posinf=0.0, neginf=0.0)
    levels = np.zeros(len(values))
    logs = np.log(np.maximum(values, 1e-9))
    for code in np.unique(types_N[values > 0]):
        rows = np.flatnonzero((types_N == code) & (values > 0))
        levels[rows] = (logs[rows] - logs[rows].mean()) / max(float(logs[rows].std()), 1e-9)
    return levels


def _id_hashes(item_ids: Sequence[str]) -> draws.Hash:
    return np.array([draws.text_hash(item_id) for item_id in item_ids], dtype=np.uint64)


def _commonest_groups(codes_AN: Codes, types: int) -> draws.Int:
    type_N, group_N = codes_AN[ATTRIBUTES.index("type")], codes_AN[ATTRIBUTES.index("group")]
    known = (type_N >= 0) & (group_N >= 0)
    if not known.any():
        return np.full(types, -1)
    table_TG = np.zeros((types, int(group_N.max()) + 1), dtype=np.int64)
    np.add.at(table_TG, (type_N[known], group_N[known]), 1)
    return np.where(table_TG.any(axis=1), table_TG.argmax(axis=1), -1)


def _counts(codes_AN: Codes, words: tuple[tuple[tuple[str, ...], ...], ...]) -> tuple[draws.Int, ...]:
    return tuple(np.bincount(row[row >= 0], minlength=len(values)) for row, values in zip(codes_AN, words, strict=True))


def _near_words(words: tuple[tuple[tuple[str, ...], ...], ...]) -> tuple[npt.NDArray[np.bool_], ...]:
    """Values that half satisfy each other: known pairs of colours, and colours sharing a word (navy blue, blue)."""
    near = []
    for attribute, values in zip(ATTRIBUTES, words, strict=True):
        pairs = np.zeros((len(values), len(values)), dtype=bool)
        if attribute == "colour":
            names = [value[0] for value in values]
            for i, one in enumerate(names):
                for j, other in enumerate(names):
                    pairs[i, j] = i != j and _are_near(one, other)
        near.append(pairs)
    return tuple(near)


def _are_near(one: str, other: str) -> bool:
    if (one, other) in lexicon.NEAR_COLOURS or (other, one) in lexicon.NEAR_COLOURS:
        return True
    return bool(set(one.split()) & set(other.split()))
