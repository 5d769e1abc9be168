"""Classifiers: residual nets trained on labelled images, and the evaluations of the separation paper."""
