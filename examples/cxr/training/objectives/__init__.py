"""What image and text encoder learn from together: one file for each system of the comparison."""
