"""Robust Student-t mixtures for embeddings."""
