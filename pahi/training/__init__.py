"""The objective, and one loop that optimises it."""
