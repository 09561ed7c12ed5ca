"""Synthetic frontal chest radiographs with findings, masks and reports."""
