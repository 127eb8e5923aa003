"""`TokenizerAdapter` over every kind of tokenizer that people bring."""

import io

import numpy as np
import pytest
import sentencepiece

from tunix_lab.data.chat import render_chat, render_prompt
from tunix_lab.data.tokenizer_adapter import Tokenizer
from tunix_lab.errors import UserError
from tunix_lab.generate.tokenizer_adapter import TokenizerAdapter


class HuggingFaceLike:
    bos_token_id, eos_token_id, pad_token_id = 7, 8, None

    def encode(self, text, *, add_special_tokens=True):
        ids = [ord(c) for c in text]
        return [self.bos_token_id, *ids] if add_special_tokens else ids

    def apply_chat_template(self, conversation, *, add_generation_prompt=False, tokenize=True, return_dict=True, shout=False):
        text = conversation[0]["content"] + ("!" if shout else "") + (">" if add_generation_prompt else "")
        ids = [ord(c) for c in text]
        return ({"input_ids": ids} if return_dict else ids) if tokenize else text

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


TURNS = [{"role": "user", "content": "7 pens"}, {"role": "assistant", "content": "8"}]


@pytest.fixture(scope="session")
def processor_file(tmp_path_factory):
    """A SentencePiece model: <unk>, <s>, </s>, then characters; "pens" reads as " pens"."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["7 pens and 8 pens"] * 9),
        model_writer=model,
        model_type="char",
        vocab_size=13,
        num_threads=1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("sentencepiece") / "any.model"
    path.write_bytes(model.getvalue())
    return path


def test_sentencepiece_processor(processor_file):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(processor_file))
    adapter = TokenizerAdapter(processor)
    assert (adapter.bos_id(), adapter.eos_id(), adapter.pad_id()) == (1, 2, 2)
    assert adapter.encode("7 pens") == processor.encode("7 pens")
    assert adapter.encode("7", add_special_tokens=True) == [1, *processor.encode("7")]
    assert adapter.encode("7", add_eos=True) == [*processor.encode("7"), 2]  # its own option
    assert adapter.decode([1, *processor.encode("7 pens"), 2]) == "7 pens"


def test_special_tokens_are_added_when_asked(tokenizer):
    adapter = TokenizerAdapter(tokenizer)
    ids = tokenizer.encode("7 pens")
    assert adapter.encode("7 pens", add_special_tokens=False) == ids
    assert adapter.encode("7 pens", add_special_tokens=True) == [2, *ids]
    assert adapter.encode("<bos>7 pens", add_special_tokens=True) == [2, *ids]  # never twice
    assert TokenizerAdapter(HuggingFaceLike()).encode("ab", add_special_tokens=True) == [7, 97, 98]
    assert TokenizerAdapter(WithProperties()).encode("ab", add_special_tokens=True) == [97, 98]  # it has no BOS
    with pytest.raises(TypeError, match="unexpected keyword argument 'truncation'"):
        adapter.encode("7", truncation=True)


def test_special_tokens_are_shown_when_asked(tokenizer):
    assert TokenizerAdapter(tokenizer).decode([2, 5], skip_special_tokens=False) == "<bos><end_of_turn>"
    assert TokenizerAdapter(HuggingFaceLike()).decode([97, 8], skip_special_tokens=False) == "a\x08"
    with pytest.raises(TypeError, match="skip_special_tokens"):
        TokenizerAdapter(SentencePieceLike()).decode([97], skip_special_tokens=False)


def test_chats_of_our_tokenizer_are_those_of_training(tokenizer):
    adapter = TokenizerAdapter(tokenizer)
    prompt = "<bos><start_of_turn>user\n7 pens<end_of_turn>\n<start_of_turn>model\n"
    assert adapter.apply_chat_template(TURNS[:1]) == prompt
    assert adapter.apply_chat_template(TURNS[:1], tokenize=True) == render_prompt(tokenizer, "7 pens").tolist()
    assert adapter.apply_chat_template(TURNS, add_generation_prompt=False) == prompt + "8<end_of_turn>\n"
    ids = adapter.apply_chat_template(TURNS, add_generation_prompt=False, tokenize=True)
    assert ids == render_chat(tokenizer, TURNS).ids.tolist()
    parts = [{"type": "text", "text": "7"}, {"type": "text", "text": " pens"}]
    assert adapter.apply_chat_template([{"role": "user", "content": parts}]) == prompt


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "image", "url": "x"}], "a part of type 'image'; only text"),
        ([{"type": "text"}], "a part of type 'text'"),
        (["7"], "a part of a message is .* got '7'"),
        ("<end_of_turn>", "spells the special token"),
        (None, "a message is"),
    ],
)
def test_chats_that_our_tokenizer_refuses(tokenizer, content, message):
    with pytest.raises(UserError, match=message):
        TokenizerAdapter(tokenizer).apply_chat_template([{"role": "user", "content": content}])


def test_variables_of_the_template(tokenizer, variant):
    template = tokenizer.chat_template + "{% if thinking %}{{ 'hm' }}{% endif %}"
    adapter = TokenizerAdapter(variant(template))
    plain = adapter.apply_chat_template(TURNS[:1])
    assert adapter.apply_chat_template(TURNS[:1], thinking=True) == plain + "hm"
    with pytest.raises(UserError, match="the template has no use for return_tensors; it reads thinking"):
        adapter.apply_chat_template(TURNS[:1], return_tensors="np")
    with pytest.raises(UserError, match="has no use for bos_token"):
        adapter.apply_chat_template(TURNS[:1], bos_token="x")


def test_chats_of_hugging_face_go_through_its_own_template():
    adapter = TokenizerAdapter(HuggingFaceLike())
    assert adapter.apply_chat_template(TURNS) == "7 pens>"
    assert adapter.apply_chat_template(TURNS, False, shout=True) == "7 pens!"
    assert adapter.apply_chat_template([{"role": "user", "content": "a"}], tokenize=True) == [97, 62]


class WithOwnTemplate(SentencePieceLike):
    def apply_chat_template(self, conversation, *, add_generation_prompt, tokenize):
        return f"{len(conversation)} {add_generation_prompt} {tokenize}"


def test_kinds_without_a_template_get_no_other_models():
    assert TokenizerAdapter(WithOwnTemplate()).apply_chat_template(TURNS) == "2 True False"
    with pytest.raises(UserError, match="SentencePieceLike has no chat template, and another model's format would be wrong"):
        TokenizerAdapter(SentencePieceLike()).apply_chat_template(TURNS)


def test_repeated_bos_is_removed(tokenizer):
    adapter = TokenizerAdapter(tokenizer)
    assert adapter.dedup_bos_ids([2, 2, 2, 7, 2, 2]) == [2, 7, 2, 2]
    assert adapter.dedup_bos_ids([7, 2, 2]) == [7, 2, 2]
    assert adapter.dedup_bos_ids([2]) == [2] and adapter.dedup_bos_ids([]) == []
    assert TokenizerAdapter(WithProperties()).dedup_bos_ids([0, 0]) == [0, 0]


def test_tokenizer_by_kind_and_path(tokenizer, processor_file):
    seven = sentencepiece.SentencePieceProcessor(model_file=str(processor_file)).encode("7 pens")
    opened = Tokenizer("sentencepiece", processor_file)
    assert opened.encode("7 pens") == [1, *seven, 2]
    assert opened.encode("7 pens", add_special_tokens=False) == seven
    assert Tokenizer("sentencepiece", processor_file, add_bos=False, add_eos=False).encode("7 pens") == seven
    whole = opened.tokenize("pe", prefix="7 ", suffix="ns")
    assert whole.tolist() == [1, *seven, 2] and whole.dtype == np.int32
    assert opened.tokenize("7 pens", add_eos=False).tolist() == [1, *seven]
    folder = Tokenizer("huggingface", tokenizer.folder)
    assert folder.tokenize("<bos>7<eos>").tolist() == [2, *tokenizer.encode("7"), 1]  # neither twice
    assert folder.stop_ids() == {1, 5} and folder.apply_chat_template(TURNS[:1]).startswith("<bos>")


def test_tokenizer_by_kind_and_path_refuses(tmp_path):
    with pytest.raises(UserError, match=r"gs:/x: no such file; .*nothing is downloaded"):
        Tokenizer("sentencepiece", "gs:/x")
    with pytest.raises(UserError, match="sentencepiece or huggingface, got 'tiktoken'"):
        Tokenizer("tiktoken", tmp_path)
