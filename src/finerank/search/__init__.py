"""Searching for a better model: ablations so far."""
