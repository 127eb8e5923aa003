"""The tokenizer and its training: ids, round trips, identity, and folders that cannot be used."""

import json
import subprocess
import sys

import pytest
import tokenizers

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.data.tokenizer_training import SPECIAL_TOKENS, train_tokenizer
from tunix_lab.errors import UserError

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def test_special_tokens_have_the_declared_ids(tokenizer):
    for i, text in enumerate(SPECIAL_TOKENS):
        assert tokenizer.encode(text) == [i]
        assert tokenizer.token_text(i) == text
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.end_of_turn_id) == (0, 1, 2, 5)
    assert tokenizer.stop_ids == {1, 5}
    assert tokenizer.special_ids == set(range(6))


def test_encode_adds_nothing(tokenizer):
    assert tokenizer.encode("") == []
    assert not tokenizer.special_ids & set(tokenizer.encode("Mia has 7 pens."))


def test_each_digit_is_a_token(tokenizer):
    assert [tokenizer.token_text(i) for i in tokenizer.encode("120+5=125")] == list("120+5=125")


def test_tags_and_words_of_the_corpus_are_single_tokens(tokenizer):
    for text in ("<reasoning>", "</reasoning>", "<answer>", "</answer>", "user", "model", " has"):
        assert len(tokenizer.encode(text)) == 1, text


@pytest.mark.parametrize("text", ["a  b\n\n\tc", "naïve – 数学 🙂", " <b>1</b> < 2 > x", "\x00\x7f", "line\r\n"])
def test_every_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decode_leaves_special_tokens_out_unless_told(tokenizer):
    ids = tokenizer.encode("<bos>7<end_of_turn>")
    assert tokenizer.decode(ids) == "7"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<bos>7<end_of_turn>"


def test_spans_cover_the_text(tokenizer):
    text = "Mia: é 12"
    encoded = tokenizer.encode_with_spans(text)
    assert encoded.ids == tokenizer.encode(text)
    assert {i for start, end in encoded.spans for i in range(start, end)} == set(range(len(text)))


def test_find_special(tokenizer):
    assert tokenizer.find_special("plain <b>") is None
    assert tokenizer.find_special("x<eos>y") == "<eos>"


def test_vocab_size_counts_every_id(tokenizer):
    assert 262 < tokenizer.vocab_size <= 400
    tokenizer.token_text(tokenizer.vocab_size - 1)


def test_save_and_load_keep_the_digest(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "copy")
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == sorted(FILES)
    assert Tokenizer.load(tmp_path / "copy").digest() == tokenizer.digest()


@pytest.mark.parametrize("name", FILES)
def test_digest_sees_every_file(tokenizer, tmp_path, name):
    tokenizer.save(tmp_path)
    text = (tmp_path / name).read_text("utf-8")
    for changed in (text + "\n", " ".join(text.rsplit("\n", 1))):  # longer, and as long as before
        (tmp_path / name).write_text(changed, "utf-8")
        assert Tokenizer.load(tmp_path).digest() != tokenizer.digest()


def test_generation_config_belongs_to_the_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 3]}', "utf-8")
    stopping = Tokenizer.load(tmp_path)
    assert stopping.stop_ids == {1, 3, 5} and stopping.declared_stop_ids == {1, 3}
    assert stopping.digest() != tokenizer.digest() and stopping.template_digest == tokenizer.template_digest
    stopping.save(tmp_path / "copy")
    assert Tokenizer.load(tmp_path / "copy").stop_ids == {1, 3, 5}


def test_training_gives_the_same_bytes_in_another_process(sft_rows, tokenizer, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(sft_rows), "utf-8")
    program = (
        "import json, sys; from tunix_lab.data.tokenizer_training import train_tokenizer;"
        "print(train_tokenizer(json.load(open(sys.argv[1])), 400, sys.argv[2]).digest())"
    )
    arguments = [str(tmp_path / "rows.json"), str(tmp_path / "made")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == tokenizer.digest()


def test_importing_the_tokenizer_loads_no_jax():
    program = (
        "import sys, tunix_lab.lab.datasets, tunix_lab.data.pipeline, tunix_lab.tasks.arithmetic; print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_corpus_may_mix_formats(tmp_path):
    rows = [
        {"text": "zebra zebra zebra"},
        {"prompt": "p", "chosen": "yodel yodel yodel", "rejected": "xylem xylem xylem"},
        {"messages": [{"role": "user", "content": "wombat wombat"}, {"role": "assistant", "content": "velvet velvet"}]},
        {"prompt": [{"role": "user", "content": "quokka quokka"}], "completion": "umber umber"},
        {"prompt": [{"role": "user", "content": "ocelot ocelot"}], "chosen": "tansy tansy", "rejected": "sorrel sorrel"},
    ]
    tokenizer = train_tokenizer(rows, 512, tmp_path)
    words = ["zebra", "yodel", "xylem", "wombat", "velvet", "quokka", "umber", "ocelot", "tansy", "sorrel"]
    assert all(len(tokenizer.encode(f" {word}")) == 1 for word in words)


def test_too_small_a_vocabulary_is_refused(sft_rows, tmp_path):
    with pytest.raises(UserError, match=r"at least 262 .* got 261"):
        train_tokenizer(sft_rows, 261, tmp_path)


def test_a_corpus_without_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="the corpus has no text"):
        train_tokenizer([{"question": "?"}], 300, tmp_path)


def test_missing_folder_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no tokenizer here .*tunix-lab data tokenizer"):
        Tokenizer.load(tmp_path / "nowhere")


def test_broken_file_is_one_message(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match="the tokenizer files cannot be read"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match=r"the tokenizer files cannot be read: tokenizer_config\.json"):
        Tokenizer.load(tmp_path)


def test_stored_truncation_and_padding_change_nothing(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(max_length=3)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    for text in ("7", "Mia has 7 pens and 12 cups"):
        assert Tokenizer.load(tmp_path).encode(text) == tokenizer.encode(text)


def test_config_entries_are_checked(variant):
    with pytest.raises(UserError, match="eos_token is missing"):
        variant(eos_token=None)
    with pytest.raises(UserError, match="bos_token '<nope>' is not in the vocabulary"):
        variant(bos_token="<nope>")
    with pytest.raises(UserError, match="bos_token must be a string, got 7"):
        variant(bos_token=7)


def test_config_entries_in_other_shapes(variant):
    assert variant(eos_token={"content": "<eos>", "lstrip": False}).eos_id == 1
    assert variant(bos_token=None).bos_id is None
    assert variant(pad_token=None).pad_id == 1
    assert variant(eot_token=None).end_of_turn_id == 5  # known by its name


def test_template_inside_the_config(variant, tokenizer, tmp_path):
    variant(chat_template="from the config")
    folder = tmp_path / "variant"
    (folder / "chat_template.jinja").unlink()
    assert Tokenizer.load(folder).chat_template == "from the config"


def test_without_a_template_there_are_no_turns(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    plain = Tokenizer.load(tmp_path)
    assert plain.chat_template is None and plain.end_of_turn_id is None
    assert plain.stop_ids == {plain.eos_id}
