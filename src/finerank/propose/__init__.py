"""From a file to a first recipe: what each column probably is, and why we think so."""
