"""The training loop, optimisers, regularisers and checkpoints."""
