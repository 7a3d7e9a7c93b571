"""Predictions of trained models, metrics and plots."""
