"""The embedded default: a small world of coloured shapes, its models, and how they were trained."""
