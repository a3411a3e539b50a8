"""Interaction units: each scores every mention-entity pair; :class:`Matcher` combines them."""

from mimic_pl.units.base import Bounds, State, Unit, UnitFactory
from mimic_pl.units.check import check_unit
from mimic_pl.units.cmfu import CMFU
from mimic_pl.units.compact import CompactVector
from mimic_pl.units.cosine import GlobalCosine
from mimic_pl.units.lexical import Lexical
from mimic_pl.units.matcher import Matcher, MatcherFactory, published_units
from mimic_pl.units.states import States, flat, nested
from mimic_pl.units.tglu import TGLU
from mimic_pl.units.vdlu import VDLU
from mimic_pl.units.weighted import WeightedMatcher

__all__ = [
    "CMFU",
    "TGLU",
    "VDLU",
    "Bounds",
    "CompactVector",
    "GlobalCosine",
    "Lexical",
    "Matcher",
    "MatcherFactory",
    "State",
    "States",
    "Unit",
    "UnitFactory",
    "WeightedMatcher",
    "check_unit",
    "flat",
    "nested",
    "published_units",
]
