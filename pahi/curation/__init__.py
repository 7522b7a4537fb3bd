"""Selection, and the published dataset with its card."""
