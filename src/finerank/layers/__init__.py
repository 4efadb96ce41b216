"""Tensors in, tensors out: embedding, attention, interaction, recurrent, activation."""
