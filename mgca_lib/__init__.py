"""Learning chest X-ray representations from image-report pairs, after MGCA (arXiv 2210.06044).

The package is thin on purpose: data, encoders, the three alignments, one training loop and the evaluation
that the course in ``notebooks/`` calls. Research and teaching only; nothing here is fit for clinical use.
"""

__version__ = "0.1.0"
