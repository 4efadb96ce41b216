"""finerank: fine ranking, from click logs to live scores."""

__version__ = "0.1.0"
