"""Runs the course: executes notebooks, keeps ``.py`` and ``.ipynb`` in step, and sums the results up."""
