"""The words of the simulated shop: what things are called, by the shop, by sellers and by shoppers.

The first form of every entry is the usual word; the others are what people say instead. Brands are invented.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Type:
    """A type of article.

    Attributes:
        name: the usual word; also the key of its silhouette.
        group: the upper levels of its category, "A > B".
        forms: what people call it, the usual word first.
        price: typical price.
        materials: what it is made of, the commonest first.
        genders: shares of women, men, unisex.
        patterned: whether it comes in patterns (a ring does not).
    """

    name: str
    group: str
    forms: tuple[str, ...]
    price: float
    materials: tuple[str, ...]
    genders: tuple[float, float, float]
    patterned: bool = True


_WOMEN, _MEN, _BOTH, _ALL = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.5, 0.44, 0.06), (0.2, 0.2, 0.6)

# In order of how many of them the shop sells.
TYPES: tuple[Type, ...] = (
    Type("t-shirt", "Apparel > Tops", ("t-shirt", "tee", "tshirt"), 18, ("cotton", "linen", "polyester"), _BOTH),
    Type("shirt", "Apparel > Tops", ("shirt", "button down", "button up"), 35, ("cotton", "linen", "denim"), _BOTH),
    Type(
        "dress", "Apparel > Dresses", ("dress", "frock", "gown"), 55, ("cotton", "silk", "linen", "polyester"), _WOMEN
    ),
    Type(
        "sneakers",
        "Footwear > Shoes",
        ("sneakers", "trainers", "running shoes"),
        70,
        ("canvas", "leather", "mesh"),
        _BOTH,
    ),
    Type("jeans", "Apparel > Bottoms", ("jeans", "denims"), 60, ("denim",), _BOTH, patterned=False),
    Type("handbag", "Accessories > Bags", ("handbag", "purse", "shoulder bag"), 75, ("leather", "canvas"), _WOMEN),
    Type("sweater", "Apparel > Tops", ("sweater", "jumper", "pullover"), 50, ("wool", "cotton"), _BOTH),
    Type("watch", "Accessories > Watches", ("watch", "wristwatch"), 120, ("leather", "steel"), _BOTH, patterned=False),
    Type("trousers", "Apparel > Bottoms", ("trousers", "pants", "slacks"), 48, ("cotton", "wool", "linen"), _BOTH),
    Type("skirt", "Apparel > Bottoms", ("skirt", "mini skirt"), 38, ("cotton", "silk", "denim"), _WOMEN),
    Type("heels", "Footwear > Shoes", ("heels", "pumps", "stilettos"), 80, ("leather", "suede"), _WOMEN),
    Type("backpack", "Accessories > Bags", ("backpack", "rucksack", "school bag"), 55, ("canvas", "polyester"), _ALL),
    Type("hoodie", "Apparel > Tops", ("hoodie", "hooded sweatshirt"), 45, ("cotton", "polyester"), _BOTH),
    Type(
        "jacket",
        "Apparel > Outerwear",
        ("jacket", "bomber", "windbreaker"),
        90,
        ("polyester", "leather", "denim"),
        _BOTH,
    ),
    Type("blouse", "Apparel > Tops", ("blouse", "ladies top"), 36, ("silk", "cotton", "polyester"), _WOMEN),
    Type("shorts", "Apparel > Bottoms", ("shorts", "bermudas"), 28, ("cotton", "linen", "denim"), _BOTH),
    Type("boots", "Footwear > Shoes", ("boots", "ankle boots"), 110, ("leather", "suede"), _BOTH, patterned=False),
    Type(
        "sunglasses",
        "Accessories > Eyewear",
        ("sunglasses", "shades"),
        65,
        ("acetate", "steel"),
        _BOTH,
        patterned=False,
    ),
    Type("scarf", "Accessories > Scarves", ("scarf", "shawl", "stole"), 25, ("wool", "silk", "cotton"), _BOTH),
    Type("coat", "Apparel > Outerwear", ("coat", "overcoat", "trench"), 150, ("wool", "polyester"), _BOTH),
    Type(
        "sandals",
        "Footwear > Sandals",
        ("sandals", "strappy sandals"),
        42,
        ("leather", "rubber"),
        _BOTH,
        patterned=False,
    ),
    Type("cap", "Accessories > Headwear", ("cap", "baseball cap", "snapback"), 20, ("cotton", "polyester"), _ALL),
    Type("socks", "Accessories > Hosiery", ("socks", "crew socks"), 9, ("cotton", "wool"), _BOTH),
    Type("blazer", "Apparel > Outerwear", ("blazer", "sport coat", "suit jacket"), 120, ("wool", "linen"), _BOTH),
    Type(
        "earrings",
        "Accessories > Jewellery",
        ("earrings", "ear drops"),
        30,
        ("silver", "gold"),
        _WOMEN,
        patterned=False,
    ),
    Type("polo shirt", "Apparel > Tops", ("polo shirt", "polo", "golf shirt"), 32, ("cotton", "polyester"), _MEN),
    Type("leggings", "Apparel > Bottoms", ("leggings", "tights", "yoga pants"), 26, ("polyester", "cotton"), _WOMEN),
    Type(
        "loafers",
        "Footwear > Shoes",
        ("loafers", "slip ons", "moccasins"),
        85,
        ("leather", "suede"),
        _BOTH,
        patterned=False,
    ),
    Type(
        "necklace", "Accessories > Jewellery", ("necklace", "pendant"), 40, ("silver", "gold"), _WOMEN, patterned=False
    ),
    Type("belt", "Accessories > Belts", ("belt", "waist belt"), 28, ("leather", "canvas"), _BOTH, patterned=False),
    Type(
        "wallet",
        "Accessories > Wallets",
        ("wallet", "billfold", "card holder"),
        35,
        ("leather", "canvas"),
        _BOTH,
        patterned=False,
    ),
    Type("tank top", "Apparel > Tops", ("tank top", "vest top", "sleeveless top"), 16, ("cotton", "polyester"), _BOTH),
    Type("tie", "Accessories > Ties", ("tie", "necktie"), 24, ("silk", "polyester"), _MEN),
    Type(
        "swimsuit", "Apparel > Swimwear", ("swimsuit", "bathing suit", "swimming costume"), 40, ("polyester",), _WOMEN
    ),
    Type(
        "flip flops",
        "Footwear > Sandals",
        ("flip flops", "thongs", "beach slippers"),
        15,
        ("rubber",),
        _ALL,
        patterned=False,
    ),
    Type(
        "suitcase", "Accessories > Bags", ("suitcase", "trolley bag", "luggage"), 130, ("polyester", "aluminium"), _ALL
    ),
    Type("clutch", "Accessories > Bags", ("clutch", "evening bag", "pouch"), 45, ("leather", "silk"), _WOMEN),
    Type(
        "sun hat",
        "Accessories > Headwear",
        ("sun hat", "straw hat", "wide brim hat"),
        27,
        ("straw", "cotton"),
        _WOMEN,
        patterned=False,
    ),
    Type("ring", "Accessories > Jewellery", ("ring", "finger ring"), 55, ("silver", "gold"), _BOTH, patterned=False),
    Type("beanie", "Accessories > Headwear", ("beanie", "knit cap", "bobble hat"), 18, ("wool", "cotton"), _ALL),
    Type("gloves", "Accessories > Gloves", ("gloves", "mittens"), 22, ("wool", "leather"), _BOTH),
    Type("umbrella", "Accessories > Umbrellas", ("umbrella", "parasol"), 24, ("polyester",), _ALL),
)

# What a shopper types for a whole group; groups without a word of their own are not asked for.
GROUP_WORDS: dict[str, tuple[str, ...]] = {
    "Apparel > Tops": ("tops", "topwear"),
    "Apparel > Outerwear": ("outerwear", "winter wear"),
    "Apparel > Bottoms": ("bottoms", "bottomwear"),
    "Footwear > Shoes": ("shoes", "footwear"),
    "Footwear > Sandals": ("summer shoes", "slippers"),
    "Accessories > Bags": ("bag", "bags"),
    "Accessories > Headwear": ("hat", "headwear"),
    "Accessories > Jewellery": ("jewellery", "jewelry"),
    "Apparel > Topwear": ("tops", "topwear"),
    "Apparel > Bottomwear": ("bottoms", "bottomwear"),
}

# name: (forms, red-green-blue, share of the catalogue)
COLOURS: dict[str, tuple[tuple[str, ...], tuple[int, int, int], float]] = {
    "black": (("black", "jet black", "ebony"), (26, 26, 29), 0.17),
    "white": (("white", "off white", "snow"), (246, 246, 244), 0.12),
    "blue": (("blue", "royal blue", "azure"), (40, 112, 214), 0.11),
    "navy": (("navy", "navy blue", "midnight"), (27, 38, 100), 0.08),
    "grey": (("grey", "gray", "charcoal"), (132, 134, 138), 0.09),
    "red": (("red", "crimson", "scarlet"), (206, 28, 36), 0.08),
    "brown": (("brown", "chocolate", "coffee"), (112, 66, 34), 0.07),
    "green": (("green", "emerald"), (26, 148, 72), 0.06),
    "pink": (("pink", "rose", "blush"), (244, 134, 176), 0.06),
    "beige": (("beige", "cream", "sand"), (219, 198, 158), 0.05),
    "purple": (("purple", "violet", "plum"), (118, 48, 160), 0.04),
    "yellow": (("yellow", "mustard", "lemon"), (246, 206, 42), 0.03),
    "orange": (("orange", "tangerine", "rust"), (242, 124, 26), 0.02),
    "olive": (("olive", "khaki", "army green"), (108, 112, 44), 0.02),
}
NEAR_COLOURS: tuple[tuple[str, str], ...] = (("navy", "blue"), ("olive", "green"), ("brown", "beige"), ("pink", "red"))

# name: (forms, share of the articles that come in patterns)
PATTERNS: dict[str, tuple[tuple[str, ...], float]] = {
    "solid": (("solid", "plain"), 0.40),
    "striped": (("striped", "stripes", "stripe"), 0.16),
    "checked": (("checked", "plaid", "check"), 0.11),
    "floral": (("floral", "flower print", "flowery"), 0.11),
    "dotted": (("dotted", "polka dot", "spotted"), 0.08),
    "zigzag": (("zigzag", "chevron"), 0.05),
    "leopard": (("leopard", "animal print"), 0.05),
    "colourblock": (("colourblock", "colour block", "two tone"), 0.04),
}

GENDERS: dict[str, tuple[str, ...]] = {
    "women": ("women", "womens", "ladies", "for women"),
    "men": ("men", "mens", "gents", "for men"),
    "unisex": ("unisex",),
}

ABBREVIATIONS: dict[str, str] = {
    "black": "blk",
    "white": "wht",
    "grey": "gry",
    "brown": "brn",
    "women": "wmn",
    "cotton": "ctn",
    "leather": "lthr",
    "striped": "strpd",
}

FILLERS: tuple[str, ...] = (
    "classic", "premium", "everyday", "slim fit", "regular fit", "essential", "stylish", "comfort", "casual",
    "trendy", "signature", "vintage", "modern", "lightweight", "soft", "designer",
)  # fmt: skip
STUFFING: tuple[str, ...] = (
    "new arrival",
    "best seller",
    "hot sale",
    "gift for him",
    "gift for her",
    "free shipping",
    "2026 fashion",
    "top quality",
    "summer sale",
    "limited offer",
)
MODELS: tuple[str, ...] = (
    "Aria", "Basil", "Cove", "Delta", "Echo", "Fjord", "Grove", "Haze", "Iris", "Juno", "Kite", "Luna", "Mira", "Nova",
    "Onyx", "Piper", "Quill", "Rivo", "Sage", "Terra", "Uma", "Vega", "Willow", "Xeno", "Yara", "Zephyr",
)  # fmt: skip

BRANDS: tuple[str, ...] = (
    "Norvik", "Halden", "Brisa", "Calvera", "Dunmore", "Elvaro", "Fenwick & Ro", "Gaspard", "Hollin", "Ivara",
    "Jarno", "Kestrelle", "Lumera", "Maribo", "Nordahl", "Ostrava Lane", "Pellini", "Quenza", "Rovelle", "Santoro Blu",
    "Tamsin", "Urbano Sud", "Velmont", "Wexley", "Xandro", "Yarrow", "Zentara", "Ardenna", "Bellmoor", "Corvin",
    "Dravena", "Eskil", "Fiorenza", "Grantham", "Hedda", "Isolde", "Jolana", "Kamari", "Lindqvist", "Montclar",
    "Nairo", "Orsino", "Pemberly", "Quillon", "Rastel", "Sorenna", "Tivoli Nine", "Ulrika", "Vantis", "Wolden",
    "Amaro", "Birkett", "Castelo", "Dorvane", "Emrys", "Falken Co", "Giverny", "Hexa", "Idris", "Jaspero",
    "Korrin", "Lazlo", "Mendoza", "Nimbus", "Oakhurst", "Petra", "Rivage", "Stellan", "Tarquin", "Umbra",
    "Verano", "Windle", "Ysolde", "Zorah", "Alborada", "Bruma", "Ciro", "Dalia", "Estela", "Frostholm",
)  # fmt: skip

# Words for the labels of given catalogues, by the label's lower-case singular; everything else is called by its label.
LABEL_FORMS: dict[str, tuple[str, ...]] = {
    "tshirt": ("tshirt", "t-shirt", "tee"),
    "trouser": ("trousers", "pants"),
    "sweater": ("sweater", "jumper", "pullover"),
    "sports shoe": ("sports shoes", "running shoes", "trainers"),
    "casual shoe": ("casual shoes", "sneakers"),
    "handbag": ("handbag", "purse"),
    "backpack": ("backpack", "rucksack"),
    "sunglasse": ("sunglasses", "shades"),
    "flip flop": ("flip flops", "slippers"),
    "watche": ("watch", "wristwatch"),
    "dresse": ("dress", "frock"),
    "grey": ("grey", "gray"),
    "navy blue": ("navy blue", "navy"),
}
