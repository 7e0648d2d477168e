"""A cohort that looks like the real one: the body, the film, findings, how often they occur, and what is dictated."""
