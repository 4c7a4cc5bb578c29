"""Evaluation of predictions: arrays and tables in, numbers out."""
