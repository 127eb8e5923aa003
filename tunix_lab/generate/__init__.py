"""Generation: prompts in, tokens out."""
