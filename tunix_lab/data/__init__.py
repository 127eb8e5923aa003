"""From rows of text to batches of token ids and masks: host side, numpy only."""
