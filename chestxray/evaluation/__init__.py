"""Evaluation of predictions, computed from arrays and tables."""
