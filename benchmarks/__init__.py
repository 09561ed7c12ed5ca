"""Side-by-side timings: one script a claim, each prints one ratio last. ``python -m benchmarks`` runs them all."""
