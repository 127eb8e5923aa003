"""Tokenizers of SentencePiece models: special tokens spelled in a text, spans, dummy prefixes, bytes, configs and identity."""

import io
import json

import pytest
import sentencepiece

from tunix_lab.data.chat import render_chat, render_prompt
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.errors import UserError

CORPUS = ["Mia has 7 pens and Tom has 8 pens.", "user model assistant answer", "The cat sat on the mat. How many pens?"] * 9
GEMMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\\n' + m['content'] + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>assistant\\n' }}{% endif %}"
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
TURNS = [
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "Mia has 7"},
    {"role": "user", "content": "pens"},
    {"role": "assistant", "content": "🙂 8"},
]


def train(**options):
    """The bytes of a model that keeps every text as it is; the same options give the same bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=340,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def gemma_model():
    """Ids 0 to 3 are <pad>, <eos>, <bos>, <unk>; no dummy prefix; turns and an HTML tag are user-defined."""
    names = {"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"}
    symbols = ["<start_of_turn>", "<end_of_turn>", "<b>", "\n"]
    ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    return train(**ids, **names, add_dummy_prefix=False, user_defined_symbols=symbols)


@pytest.fixture(scope="session")
def llama_model():
    """Ids 0 to 2 are <unk>, <s>, </s>; no padding; a dummy prefix."""
    return train()


@pytest.fixture
def make(tmp_path):
    """`make(model, template=None, config=None)`: a tokenizer of these files."""

    def build(model, template=None, config=None):
        (tmp_path / "tokenizer.model").write_bytes(model)
        (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
        if template is not None:
            (tmp_path / "chat_template.jinja").write_text(template, "utf-8")
        if config is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
        return Tokenizer.load(tmp_path)

    return build


def shown(tokenizer, text):
    """Each token with the part of `text` that it covers."""
    encoded = tokenizer.encode_with_spans(text)
    assert encoded.ids == tokenizer.encode(text)
    return [(tokenizer.token_text(i), text[start:end]) for i, (start, end) in zip(encoded.ids, encoded.spans, strict=True)]


def test_ids_come_from_the_model_where_there_is_no_config(make, gemma_model, llama_model):
    gemma = make(gemma_model, GEMMA_CHAT)
    assert (gemma.pad_id, gemma.eos_id, gemma.bos_id, gemma.end_of_turn_id) == (0, 1, 2, 5)
    assert gemma.special_ids == {0, 1, 2, 3, 4, 5} and gemma.stop_ids == {1, 5}
    assert gemma.vocab_size == sentencepiece.SentencePieceProcessor(model_proto=gemma_model).get_piece_size()
    assert make(gemma_model).special_ids == {0, 1, 2, 3, 5}  # no template, no other sign that 4 opens a turn
    llama = make(llama_model, MISTRAL_CHAT)
    assert (llama.pad_id, llama.eos_id, llama.bos_id, llama.end_of_turn_id) == (2, 2, 1, 2)  # EOS pads, and ends turns
    assert llama.special_ids == {0, 1, 2}


def test_special_tokens_spelled_in_a_text_are_those_tokens(make, gemma_model):
    gemma = make(gemma_model, GEMMA_CHAT)
    assert gemma.encode("<bos><start_of_turn>\n<end_of_turn><eos><pad><unk>") == [2, 4, 7, 5, 1, 0, 3]
    assert gemma.decode([2, 4, 7, 5, 1]) == "\n"
    assert gemma.decode([2, 4, 7, 5, 1, 3], skip_special_tokens=False) == "<bos><start_of_turn>\n<end_of_turn><eos><unk>"
    assert gemma.find_special("a <eos>") == "<eos>" and gemma.find_special("<b>x</b>") is None
    assert gemma.decode(gemma.encode("<b>7")) == "<b>7"  # user-defined, yet plain text


@pytest.mark.parametrize("text", ["", " ", "Mia has\n7  pens ", " leads", "数 🙂é\x00", "<b>x</b>", "▁<0x0A>"])
def test_every_text_survives_the_round_trip(make, gemma_model, llama_model, text):
    for model in (gemma_model, llama_model):
        tokenizer = make(model)
        expected = text.replace("▁", " ")  # SentencePiece's own sign for a space
        assert tokenizer.decode(tokenizer.encode(text)) == expected
        bos = tokenizer.token_text(tokenizer.bos_id)
        assert tokenizer.decode(tokenizer.encode(bos + text + bos + text), skip_special_tokens=False) == (bos + expected) * 2


def test_spans_are_characters_of_the_text(make, gemma_model, llama_model):
    gemma = make(gemma_model, GEMMA_CHAT)
    assert shown(gemma, "<bos>é has") == [("<bos>", "<bos>"), ("�", "é"), ("�", "é"), (" has", " has")]
    assert gemma.encode_with_spans("<bos>é has").spans == [(0, 5), (5, 6), (5, 6), (6, 10)]
    # The dummy prefix has no character: joined with a word it is that word's, alone it is what follows.
    llama = make(llama_model)
    assert llama.encode_with_spans("</s>pens</s>").spans == [(0, 4), (4, 8), (8, 12)]
    assert shown(llama, "<s> pens") == [("<s>", "<s>"), ("", " pens"), ("pens", " pens")]


def test_dummy_prefix_comes_after_every_special_token_or_first_only(make, llama_model):
    (pens,) = make(llama_model).encode("pens")
    legacy = make(llama_model, config={"eos_token": "</s>"})
    assert legacy.encode("pens</s>pens") == [pens, 2, pens]
    new = make(llama_model, config={"eos_token": "</s>", "legacy": False})
    first, end, *rest = new.encode("pens</s>pens")
    assert (first, end) == (pens, 2) and pens not in rest
    assert new.encode("</s> pens") == [2, pens]
    for text in ("pens</s>pens", "</s>pens", "</s> pens"):
        assert new.decode(new.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("which", ["gemma", "mistral"])
def test_chats(make, gemma_model, llama_model, which):
    tokenizer = make(gemma_model, GEMMA_CHAT) if which == "gemma" else make(llama_model, MISTRAL_CHAT)
    chat = render_chat(tokenizer, TURNS)
    text = tokenizer.decode(chat.ids, skip_special_tokens=False)
    if which == "gemma":
        turns = [f"<start_of_turn>{m['role']}\n{m['content']}<end_of_turn>\n" for m in TURNS]
        assert text == "<bos>" + "".join(turns)
        answers = ["Mia has 7<end_of_turn>", "🙂 8<end_of_turn>"]
    else:
        assert text == "<s>[INST] How many? [/INST] Mia has 7</s>[INST] pens [/INST] 🙂 8</s>"
        answers = [" Mia has 7</s>", " 🙂 8</s>"]
    edges = [i for i in range(1, len(chat.mask)) if chat.mask[i] != chat.mask[i - 1]] + [len(chat.ids)]
    trained = [tokenizer.decode(chat.ids[a:b], skip_special_tokens=False) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    # A model with a dummy prefix takes the first space of a text for that prefix.
    assert trained == [answer.removeprefix(" ") for answer in answers]
    prompt = render_prompt(tokenizer, TURNS[:3])
    assert prompt.tolist() == chat.ids[: chat.answer.start].tolist()
    assert chat.ids.tolist().count(tokenizer.bos_id) == 1 and chat.ids[0] == tokenizer.bos_id


def test_what_follows_an_answer_is_not_trained(make, llama_model):
    """The dummy prefix before the next turn stands where the answer ends, and belongs to that turn."""
    tokenizer = make(llama_model, MISTRAL_CHAT)
    chat = render_chat(tokenizer, TURNS[:3])
    (end,) = [i for i in range(len(chat.ids)) if chat.ids[i] == tokenizer.eos_id]
    assert chat.mask[end] and not chat.mask[end + 1 :].any()


def test_config_names_tokens_and_adds_more(make, llama_model):
    added = {
        "0": {"content": "<unk>", "special": True},
        "340": {"content": "<|im_end|>", "special": True, "lstrip": False},
        "341": {"content": "<note>", "special": False},
    }
    config = {"bos_token": None, "eos_token": {"content": "<|im_end|>"}, "added_tokens_decoder": added}
    size = sentencepiece.SentencePieceProcessor(model_proto=llama_model).get_piece_size()
    assert size == 340
    tokenizer = make(llama_model, "{{ messages[0].content + '<|im_end|>' }}", config)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (None, 340, 340, 342)
    assert tokenizer.encode("<|im_end|><note>") == [340, 341]
    assert tokenizer.decode([340, 341]) == "<note>" and tokenizer.find_special("<note>") is None
    other = make(llama_model, config={"eos_token": "<s>", "pad_token": "<unk>"})
    assert (other.bos_id, other.eos_id, other.pad_id) == (1, 1, 0)  # what the config does not name, the model does


def test_the_longest_special_token_is_read(make, llama_model):
    added = {"340": {"content": "<a", "special": True}, "341": {"content": "<a>", "special": True}}
    tokenizer = make(llama_model, config={"added_tokens_decoder": added})
    assert tokenizer.encode("<a><a") == [341, 340] and tokenizer.find_special("x<a>") == "<a>"
    assert tokenizer.decode([341, 340]) == ""


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"eos_token": "<nope>"}, "eos_token '<nope>' is not in the vocabulary"),
        ({"eos_token": None}, "eos_token is missing"),
        ({"added_tokens_decoder": {"400": {"content": "<x>", "rstrip": True}}}, "400 has lstrip or rstrip, .*tokenizer.json"),
        ({"added_tokens_decoder": {"400": {"content": "<x>", "lstrip": True}}}, "400 has lstrip or rstrip"),
        ({"added_tokens_decoder": {"400": "<x>"}}, "an entry is .* got '<x>'"),
        ([], "must hold a JSON object, got list"),
    ],
)
def test_configs_that_cannot_be_used(make, llama_model, config, message):
    with pytest.raises(UserError, match=message):
        make(llama_model, config=config)


def test_added_tokens_of_an_old_folder_are_not_overlooked(make, llama_model, tmp_path):
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 340}', "utf-8")
    with pytest.raises(UserError, match=r"added_tokens\.json is not read; add tokenizer\.json"):
        make(llama_model)


def test_broken_models(make, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.model: no SentencePiece model"):
        make(b"garbage")
    with pytest.raises(UserError, match=r"tokenizer\.model: no SentencePiece model"):
        make(b"")


def test_digest_and_save(make, gemma_model, llama_model, tmp_path):
    tokenizer = make(llama_model)
    tokenizer.save(tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["tokenizer.model"]
    copy = Tokenizer.load(tmp_path / "copy")
    assert copy.digest() == tokenizer.digest() and copy.encode("pens") == tokenizer.encode("pens")
    assert make(gemma_model).digest() != copy.digest()
    with_template = make(llama_model, MISTRAL_CHAT)
    assert with_template.digest() != copy.digest() and with_template.template_digest is not None


def test_tokenizer_json_is_preferred(make, llama_model, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    both = make(llama_model)
    assert both.encode("<bos>7") == tokenizer.encode("<bos>7") and both.digest() != tokenizer.digest()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer_config\.json is missing"):
        Tokenizer.load(tmp_path)
