"""Chats of the supported families: the exact text, BOS, terminators, masks, and what generation is prompted with."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from tunix_lab.data.chat import render_chat, render_prompt, render_text
from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.data.tokenizer_adapter import TokenizerAdapter
from tunix_lab.errors import UserError


@dataclasses.dataclass(frozen=True)
class Family:
    """A family's special tokens, the format of its chats, and how TURNS look in it."""

    template: str
    special: tuple[str, ...]
    config: dict[str, object]
    stops: tuple[str, ...]  # of generation_config.json
    terminator: str
    text: str
    prompt: str  # for the first turn
    not_special: tuple[str, ...] = ()


TURNS = [
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "7 é"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "8"},
]
SYSTEM = {"role": "system", "content": "Be brief."}

GEMMA = Family(
    template="""\
{{ bos_token }}
{%- if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}{% set turns = messages[1:] %}
{%- else %}{% set first = '' %}{% set turns = messages %}{% endif %}
{%- for turn in turns %}
    {%- if (turn.role == 'user') != (loop.index0 is even) %}{{ raise_exception('turns must alternate') }}{% endif %}
    {{- '<start_of_turn>' ~ ('model' if turn.role == 'assistant' else turn.role) ~ '\\n' ~ (first if loop.first else '') }}
    {{- turn.content | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
""",
    special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    config={"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
    stops=("<eos>", "<end_of_turn>"),
    terminator="<end_of_turn>",
    text="<bos><start_of_turn>user\nHow many?<end_of_turn>\n<start_of_turn>model\n7 é<end_of_turn>\n"
    "<start_of_turn>user\nAnd now?<end_of_turn>\n<start_of_turn>model\n8<end_of_turn>\n",
    prompt="<bos><start_of_turn>user\nHow many?<end_of_turn>\n<start_of_turn>model\n",
)
LLAMA3 = Family(
    template="""\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}
    {%- else %}{% set date_string = '26 Jul 2024' %}
    {%- endif %}
{%- endif %}
{%- if tools is not none %}{{ raise_exception('no tools here') }}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set instructions = messages[0]['content'] | trim %}{% set turns = messages[1:] %}
{%- else %}
    {%- set instructions = '' %}{% set turns = messages %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' + instructions + '<|eot_id|>' }}
{%- for turn in turns %}
    {{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' + turn['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
""",
    special=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
    config={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    terminator="<|eot_id|>",
    text="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHow many?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n7 é<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nAnd now?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n8<|eot_id|>",
    prompt="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHow many?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
)
QWEN25 = Family(
    template="""\
{%- if tools %}{{ raise_exception('no tools here') }}{% endif %}
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}
{%- for turn in messages %}
    {{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
""",
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    config={"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    stops=("<|im_end|>", "<|endoftext|>"),
    terminator="<|im_end|>",
    text="<|im_start|>system\nYou are helpful.<|im_end|>\n"
    "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n7 é<|im_end|>\n"
    "<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n8<|im_end|>\n",
    prompt="<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n",
)
# Thoughts stay where they are: only the generation prompt can close them in advance.
QWEN3 = dataclasses.replace(
    QWEN25,
    template="""\
{%- for turn in messages %}
    {{- '<|im_start|>' + turn.role + '\\n' }}
    {%- if turn.role == 'assistant' and '</think>' not in turn.content %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
    {{- turn.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
""",
    not_special=("<think>", "</think>"),
    text="<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n7 é<|im_end|>\n"
    "<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n8<|im_end|>\n",
    prompt="<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n",
)
# As Qwen 3 really does it: earlier turns lose their thoughts, the last one gets an empty thought if it has none.
QWEN3_FORGETTING = dataclasses.replace(
    QWEN3,
    template="""\
{%- for turn in messages %}
    {%- set words = turn.content %}
    {%- if turn.role == 'assistant' and not loop.last %}{% set words = words.split('</think>')[-1].lstrip('\\n') %}{% endif %}
    {{- '<|im_start|>' + turn.role + '\\n' }}
    {%- if turn.role == 'assistant' and loop.last and '</think>' not in words %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
    {{- words + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
""",
)
MISTRAL = Family(
    template="""\
{{- bos_token }}
{%- for turn in messages %}
    {%- if turn.role == 'user' %}
        {{- '[INST] ' + turn.content + ' [/INST]' }}
    {%- elif turn.role == 'assistant' %}
        {%- generation %}{{ ' ' + turn.content + eos_token }}{% endgeneration %}
    {%- else %}
        {{- raise_exception('only user and assistant') }}
    {%- endif %}
{%- endfor %}
""",
    special=("<unk>", "<s>", "</s>"),
    config={name: {"__type": "AddedToken", "content": text} for name, text in (("bos_token", "<s>"), ("eos_token", "</s>"))},
    stops=("</s>",),
    terminator="</s>",
    text="<s>[INST] How many? [/INST] 7 é</s>[INST] And now? [/INST] 8</s>",
    prompt="<s>[INST] How many? [/INST]",
)
FAMILIES = {"gemma": GEMMA, "llama3": LLAMA3, "qwen2.5": QWEN25, "qwen3": QWEN3, "mistral": MISTRAL}


def write(family, folder, **config):
    """A tokenizer whose ids are bytes, then the family's tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(family.special))
    backend.add_tokens(list(family.not_special))
    backend.save(str(folder / "tokenizer.json"))
    files = {
        "tokenizer_config.json": json.dumps(family.config | config),
        "generation_config.json": json.dumps({"eos_token_id": [backend.token_to_id(text) for text in family.stops]}),
        "chat_template.jinja": family.template,
    }
    for name, content in files.items():
        (folder / name).write_text(content, "utf-8")
    return folder


@pytest.fixture
def make(tmp_path):
    """`make(family, **entries of the config)`: the tokenizer."""
    return lambda family, **config: Tokenizer.load(write(family, tmp_path / "family", **config))


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request):
    return request.param


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_text_is_exactly_the_familys(family, make):
    tokenizer = make(family)
    assert render_text(tokenizer, TURNS, add_generation_prompt=False) == family.text
    assert text_of(tokenizer, render_chat(tokenizer, TURNS).ids) == family.text
    assert text_of(tokenizer, render_prompt(tokenizer, TURNS[:1])) == family.prompt


def test_number_of_bos(family, make):
    tokenizer = make(family)
    bos = {"gemma": "<bos>", "llama3": "<|begin_of_text|>", "mistral": "<s>"}
    expected = [name for name, own in FAMILIES.items() if own is family and name in bos]
    if not expected:
        assert tokenizer.bos_id is None
        return
    assert tokenizer.token_text(tokenizer.bos_id) == bos[expected[0]]
    for ids in (render_chat(tokenizer, TURNS).ids, render_prompt(tokenizer, TURNS[:3])):
        assert np.flatnonzero(ids == tokenizer.bos_id).tolist() == [0]


def test_answers_and_their_terminators_are_trained(family, make):
    tokenizer = make(family)
    chat = render_chat(tokenizer, TURNS)
    before = {"qwen3": "<think>\n\n</think>\n\n", "mistral": " "}.get(next(n for n, own in FAMILIES.items() if own is family), "")
    end = family.terminator
    assert text_of(tokenizer, chat.ids[chat.mask]) == f"{before}7 é{end}{before}8{end}"
    # A run of trained tokens ends with the terminator, and with nothing after it.
    last = np.flatnonzero(chat.mask & ~np.append(chat.mask[1:], False))
    assert [tokenizer.token_text(i) for i in chat.ids[last]] == [end, end]


def test_generation_stops_at_the_terminator_and_what_is_declared(family, make):
    tokenizer = make(family)
    (terminator,) = tokenizer.encode(family.terminator)
    assert tokenizer.end_of_turn_id == terminator
    assert {tokenizer.token_text(i) for i in tokenizer.stop_ids} == {family.terminator, *family.stops}
    assert TokenizerAdapter(tokenizer).stop_ids() == tokenizer.stop_ids


@pytest.mark.parametrize("turns", [2, 4])
def test_generation_prompt_is_the_training_prefix(family, make, turns):
    tokenizer = make(family)
    chat, prompt = render_chat(tokenizer, TURNS[:turns]), render_prompt(tokenizer, TURNS[: turns - 1])
    assert chat.ids[: len(prompt)].tolist() == prompt.tolist()
    assert chat.answer.start == len(prompt) and chat.mask[len(prompt)] and not chat.mask[len(prompt) - 1]


def test_system_messages(make):
    prompt = lambda family: render_text(make(family), [SYSTEM, TURNS[0]], add_generation_prompt=True)  # noqa: E731
    assert prompt(GEMMA) == GEMMA.prompt.replace("How many?", "Be brief.\n\nHow many?")
    assert prompt(LLAMA3) == LLAMA3.prompt.replace("2024\n\n", "2024\n\nBe brief.")
    assert prompt(QWEN25) == QWEN25.prompt.replace("You are helpful.", "Be brief.")
    assert prompt(QWEN3) == "<|im_start|>system\nBe brief.<|im_end|>\n" + QWEN3.prompt
    with pytest.raises(UserError, match="the template refuses these messages: only user and assistant"):
        prompt(MISTRAL)


def test_a_date_never_depends_on_the_day(make):
    """`strftime_now` is not defined, so the template's fixed date is used; a caller can still give another."""
    tokenizer = make(LLAMA3)
    assert "Today Date: 26 Jul 2024\n" in render_text(tokenizer, TURNS, add_generation_prompt=False)
    assert "Today Date: 1 May 2030\n" in render_text(tokenizer, TURNS, add_generation_prompt=False, date_string="1 May 2030")


def test_thoughts_are_plain_text_that_is_trained(make):
    tokenizer = make(QWEN3)
    thought = [TURNS[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\n7"}]
    chat = render_chat(tokenizer, thought)
    assert text_of(tokenizer, chat.ids[chat.mask]) == "<think>\nhm\n</think>\n\n7<|im_end|>"
    closed = render_text(tokenizer, TURNS[:1], add_generation_prompt=True, enable_thinking=False)
    assert closed == QWEN3.prompt + "<think>\n\n</think>\n\n"


def test_a_template_that_forgets_thoughts_trains_one_turn_only(make):
    """With a second answer the first loses its thought, so what the model saw when it wrote the first is nowhere in the text."""
    tokenizer = make(QWEN3_FORGETTING)
    chat = render_chat(tokenizer, TURNS[:2])
    assert text_of(tokenizer, chat.ids[chat.mask]) == "<think>\n\n</think>\n\n7 é<|im_end|>"
    with pytest.raises(UserError, match="renders a turn differently once later turns follow"):
        render_chat(tokenizer, TURNS)


def test_end_of_turn_is_the_terminator_that_the_template_spells(make):
    both = dataclasses.replace(QWEN25, special=(*QWEN25.special, "<|eot_id|>"))
    tokenizer = make(both)
    assert tokenizer.token_text(tokenizer.end_of_turn_id) == "<|im_end|>"
    # Spelled in pieces, it is the only one there is; a template that speaks of EOS too still ends turns with what it spells.
    for template in (QWEN25.template.replace("<|im_end|>", "<|im' + '_end|>"), QWEN25.template + "{{ eos_token[:0] }}"):
        tokenizer = make(dataclasses.replace(QWEN25, template=template), eos_token="<|endoftext|>")
        assert tokenizer.token_text(tokenizer.end_of_turn_id) == "<|im_end|>"
    # A base vocabulary has <|im_end|> too; what ends a turn is what the template writes.
    own = dataclasses.replace(QWEN25, template="{{ messages[0].content + eos_token }}")
    tokenizer = make(own, eos_token="<|endoftext|>")
    assert tokenizer.token_text(tokenizer.end_of_turn_id) == "<|endoftext|>"
    spelled = dataclasses.replace(MISTRAL, template=MISTRAL.template.replace("eos_token", "'</s>'"))
    assert make(spelled).end_of_turn_id == make(MISTRAL).eos_id
    with pytest.raises(UserError, match=r"cannot tell which token ends a turn .*add \"eot_token\""):
        make(dataclasses.replace(MISTRAL, template=MISTRAL.template.replace("eos_token", "'\\n'")))
    with pytest.raises(UserError, match="cannot tell which token ends a turn"):
        make(dataclasses.replace(both, template="{{ messages[0].content }}"))


@pytest.mark.parametrize(
    ("written", "stops"), [("258", {257, 258}), ("[256, 257]", {256, 257}), ("null", {257}), ("[]", {257})], ids=repr
)
def test_declared_stop_ids(tmp_path, written, stops):
    folder = write(dataclasses.replace(MISTRAL, template="{{ eos_token }}"), tmp_path, eos_token="<s>")
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {written}}}', "utf-8")
    assert Tokenizer.load(folder).stop_ids == stops


@pytest.mark.parametrize("written", ["259", "[2, -1]", '"</s>"', "true", "1.0"])
def test_declared_stop_ids_outside_the_vocabulary(tmp_path, written):
    folder = write(MISTRAL, tmp_path)
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {written}}}', "utf-8")
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id has .* no id of this tokenizer \(0 to 258\)"):
        Tokenizer.load(folder)


def test_template_digest_is_of_the_template_alone(make):
    tokenizer = make(GEMMA)
    assert tokenizer.template_digest == hashlib.sha256(GEMMA.template.encode()).hexdigest()
    assert (
        make(dataclasses.replace(QWEN25, template=GEMMA.template), eot_token="<|im_end|>").template_digest
        == tokenizer.template_digest
    )
    (tokenizer.folder / "chat_template.jinja").unlink()
    assert Tokenizer.load(tokenizer.folder).template_digest is None


@pytest.mark.slow
def test_transformers_renders_the_same(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write(family, tmp_path / "family")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours = Tokenizer.load(folder)
    for turns, prompt in ((TURNS, False), (TURNS[:2], False), (TURNS[:3], True), (TURNS[:1], True)):
        options = {"add_generation_prompt": prompt} | ({"date_string": "26 Jul 2024"} if family is LLAMA3 else {})
        text = theirs.apply_chat_template(turns, tokenize=False, **options)
        assert render_text(ours, turns, **options) == text
        assert ours.encode(text) == theirs.apply_chat_template(turns, tokenize=True, return_dict=False, **options)
