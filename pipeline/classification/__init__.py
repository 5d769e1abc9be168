"""Classifiers: residual nets trained on labelled images, and what the separation paper asks of them."""
