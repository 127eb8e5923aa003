"""`TokenizerAdapter` at the path that users know; it lives with the other tokenizer code in `tunix_lab.data`."""

from tunix_lab.data.tokenizer_adapter import HuggingFaceTokenizer, PlainTokenizer, TokenizerAdapter

__all__ = ["HuggingFaceTokenizer", "PlainTokenizer", "TokenizerAdapter"]
