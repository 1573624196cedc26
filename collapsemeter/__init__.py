"""Measure neural collapse in every layer of a classifier."""
