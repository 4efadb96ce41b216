"""Synthetic worlds with known truth: what a model claims to find is there, and how much of it is known.

Each is a data set `world_<name>` and a function; no files are needed.
"""

from finerank.datasets.worlds.conversions import ConversionOptions, conversions
from finerank.datasets.worlds.delays import DelayOptions, delays
from finerank.datasets.worlds.drift import DriftOptions, drift
from finerank.datasets.worlds.interactions import InteractionOptions, interactions
from finerank.datasets.worlds.interests import InterestOptions, interests
from finerank.datasets.worlds.popularity import PopularityOptions, popularity
from finerank.datasets.worlds.positions import PositionOptions, positions
from finerank.datasets.worlds.sequences import SequenceOptions, sequences
from finerank.datasets.worlds.sinusoids import SinusoidOptions, sinusoids
from finerank.datasets.worlds.watches import WatchOptions, watches
from finerank.datasets.worlds.world import World

__all__ = [
    "ConversionOptions",
    "DelayOptions",
    "DriftOptions",
    "InteractionOptions",
    "InterestOptions",
    "PopularityOptions",
    "PositionOptions",
    "SequenceOptions",
    "SinusoidOptions",
    "WatchOptions",
    "World",
    "conversions",
    "delays",
    "drift",
    "interactions",
    "interests",
    "popularity",
    "positions",
    "sequences",
    "sinusoids",
    "watches",
]
