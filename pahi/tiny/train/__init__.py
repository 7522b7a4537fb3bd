"""How the small world's models were made; `python -m pahi.tiny.train all` makes them again."""
