"""Many small mixtures, each of a data set of its own, fitted together."""
