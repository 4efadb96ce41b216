"""Scores of raw rows by a finished run: files that it was not prepared from, ids that it never saw."""
