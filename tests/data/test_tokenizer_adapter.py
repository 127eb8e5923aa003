"""`TokenizerAdapter` over every kind of tokenizer that people bring."""

import pytest

from tunix_lab.generate.tokenizer_adapter import TokenizerAdapter


class HuggingFaceLike:
    bos_token_id, eos_token_id, pad_token_id = 7, 8, None

    def encode(self, text, *, add_special_tokens=True):
        ids = [ord(c) for c in text]
        return [self.bos_token_id, *ids] if add_special_tokens else ids

    def decode(self, token_ids, *, skip_special_tokens=False):
        return "".join(chr(i) for i in token_ids if not (skip_special_tokens and i in (7, 8)))


class SentencePieceLike:
    """Ids are methods, and -1 where there is none."""

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def bos_id(self):
        return 2

    def eos_id(self):
        return 1

    def pad_id(self):
        return -1


class WithProperties(SentencePieceLike):
    bos_id, eos_id, pad_id = None, 1, 0


class WithoutEnd(SentencePieceLike):
    def eos_id(self):
        return -1


def test_our_tokenizer(tokenizer):
    adapter = TokenizerAdapter(tokenizer)
    assert (adapter.bos_id(), adapter.eos_id(), adapter.pad_id()) == (2, 1, 0)
    assert adapter.stop_ids() == {1, 5}
    assert adapter.encode("7 pens") == tokenizer.encode("7 pens")
    assert adapter.decode([2, *tokenizer.encode("7 pens"), 5]) == "7 pens"


def test_hugging_face_adds_no_bos_and_hides_special_tokens():
    adapter = TokenizerAdapter(HuggingFaceLike())
    assert adapter.encode("ab") == [97, 98]
    assert adapter.decode([7, 97, 8]) == "a"
    assert (adapter.bos_id(), adapter.eos_id()) == (7, 8)
    assert adapter.pad_id() == 8  # none of its own; masks never come from ids
    assert adapter.stop_ids() == {8}


@pytest.mark.parametrize(("tokenizer", "ids"), [(SentencePieceLike(), (2, 1, 1)), (WithProperties(), (None, 1, 0))])
def test_ids_as_methods_or_properties(tokenizer, ids):
    adapter = TokenizerAdapter(tokenizer)
    assert (adapter.bos_id(), adapter.eos_id(), adapter.pad_id()) == ids
    assert adapter.decode(adapter.encode("x y")) == "x y"


def test_adapting_twice_changes_nothing(tokenizer):
    once = TokenizerAdapter(tokenizer)
    assert TokenizerAdapter(once).tokenizer is tokenizer
    assert TokenizerAdapter(once).stop_ids() == once.stop_ids()


def test_what_is_no_tokenizer_is_refused():
    with pytest.raises(TypeError, match="dict is no tokenizer: it needs encode, decode and bos_id"):
        TokenizerAdapter({})
    with pytest.raises(ValueError, match="WithoutEnd has no EOS token"):
        TokenizerAdapter(WithoutEnd())
