"""`TokenizerAdapter` and its kin at the path that users know; they live with the other tokenizer code in `tunix_lab.data`."""

from tunix_lab.data.tokenizer_adapter import HuggingFaceTokenizer, PlainTokenizer, Tokenizer, TokenizerAdapter

__all__ = ["HuggingFaceTokenizer", "PlainTokenizer", "Tokenizer", "TokenizerAdapter"]
