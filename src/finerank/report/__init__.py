"""One HTML file per run, comparison, ablation or explanation: pictures inside, no network."""
