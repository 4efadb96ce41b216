"""Loops in C++ for what PyTorch's operators do slowly on a CPU, built at first use; see `build`."""
