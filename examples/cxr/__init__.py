"""Parts of the CXR-CML reproduction: data, simulated cohort, CLIP adapters, training, evaluation and report."""
