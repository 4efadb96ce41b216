"""finerank <verb>: a file a verb, found by its being there."""
