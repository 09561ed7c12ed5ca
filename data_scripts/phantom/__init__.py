"""Synthetic frontal chest radiographs with findings, masks and reports."""

PHANTOM_FILE = "PHANTOM.json"
"""Lies beside the tables of every phantom dataset, and of no release."""
