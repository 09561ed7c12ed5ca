"""Prepared datasets, reports, tokens and the datasets that feed training and evaluation."""
