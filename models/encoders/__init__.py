"""Encoders: a vision transformer, a causal text transformer and its tokenizer."""
