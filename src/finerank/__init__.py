"""finerank: fine ranking, from click logs to live scores."""

import os

__version__ = "0.1.0"

# Threads of GNU OpenMP that wait for each other turn 300,000 times before they sleep. With a core to themselves that is free;
# beside a busy neighbour every wait lasts until that one is moved on, and a training takes ten times as long. So a thousand
# turns, as OpenMP itself does once it has more threads than cores. It is read when torch is loaded: who imports torch first
# sets it in the environment, and what is set there stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
