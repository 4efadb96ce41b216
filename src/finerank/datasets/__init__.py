"""One file per public data set: raw public files to samples and events."""
