"""A cohort on disk and what is read of it: labels, images, splits, captions, texts."""
