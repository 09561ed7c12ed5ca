"""Miniature raw datasets, each in the on-disk form in which the owner of the original ships it."""
