"""From a log to batches: sources, encoder, event tables, data set, batches. Columns and indices; no models."""
