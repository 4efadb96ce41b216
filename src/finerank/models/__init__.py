"""One file per model: a named composition of representation, interaction and heads."""
