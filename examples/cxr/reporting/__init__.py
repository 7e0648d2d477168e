"""From the results of all runs to a page: scores and their spread, figures, the report."""
