"""Saved classifiers: prediction, export and reports."""
