"""The bulk engine: from prompts to encoded, scored pictures."""
