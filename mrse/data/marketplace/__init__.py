"""The simulated marketplace: a shop with the structure that the paper's claims are about.

Items have attributes; titles forget some of them and pictures tell them all; shoppers have lasting tastes; the shop
shows what its own ranker and exploration choose, with known propensities; the days drift. All of it is deterministic by
seed and day. See the modules for each part.
"""

from mrse.data.marketplace.shop import located, simulate

__all__ = ["located", "simulate"]
