"""Rendering chats: which tokens are trained, one BOS, terminators, and the equality of prompt and training prefix."""

import numpy as np
import pytest

from tunix_lab.data.chat import render_chat, render_prompt
from tunix_lab.errors import UserError

USER, MODEL = "<start_of_turn>user\n", "<start_of_turn>model\n"
QUESTION = {"role": "user", "content": "How many pens?"}
ANSWER = {"role": "assistant", "content": "<answer>7</answer>"}
TURNS = [QUESTION, ANSWER, {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "8"}]


def trained(tokenizer, messages):
    chat = render_chat(tokenizer, messages)
    return tokenizer.decode(chat.ids[chat.mask], skip_special_tokens=False)


def test_format_is_gemmas(tokenizer):
    chat = render_chat(tokenizer, TURNS[:2])
    text = tokenizer.decode(chat.ids, skip_special_tokens=False)
    assert text == f"<bos>{USER}How many pens?<end_of_turn>\n{MODEL}<answer>7</answer><end_of_turn>\n"
    assert chat.ids.dtype == np.int32 and chat.mask.dtype == bool


def test_system_message_and_surrounding_space(tokenizer):
    messages = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "\n Hi\n"}]
    text = tokenizer.decode(render_prompt(tokenizer, messages), skip_special_tokens=False)
    assert text == f"<bos>{USER}Be brief.\n\nHi<end_of_turn>\n{MODEL}"


def test_assistant_mask_multi_turn(tokenizer):
    assert trained(tokenizer, TURNS) == "<answer>7</answer><end_of_turn>8<end_of_turn>"
    assert trained(tokenizer, [{"role": "system", "content": "8"}, *TURNS]) == "<answer>7</answer><end_of_turn>8<end_of_turn>"


def test_last_turn_of_the_user_is_context(tokenizer):
    assert trained(tokenizer, TURNS[:3]) == "<answer>7</answer><end_of_turn>"


def test_terminator_trained(tokenizer):
    chat = render_chat(tokenizer, TURNS)
    ends = np.flatnonzero(chat.ids == tokenizer.end_of_turn_id)
    assert chat.mask[ends].tolist() == [False, True, False, True]
    assert tokenizer.end_of_turn_id in tokenizer.stop_ids
    assert not chat.mask[ends[1] + 1]  # the line break after it is the template's


def test_single_bos(tokenizer, variant):
    assert render_chat(tokenizer, TURNS).ids.tolist().count(tokenizer.bos_id) == 1
    assert render_prompt(tokenizer, "How many?").tolist().count(tokenizer.bos_id) == 1
    for template in ("{{ bos_token }}" + tokenizer.chat_template, tokenizer.chat_template.replace("{{ bos_token }}", "")):
        changed = variant(template)
        with pytest.raises(UserError, match=r"exactly one BOS, this text has [02]"):
            render_prompt(changed, "How many?")
        with pytest.raises(UserError, match=r"exactly one BOS, this text has [02]"):
            render_chat(changed, TURNS)


def test_family_without_bos(variant):
    plain = variant(bos_token=None)
    assert plain.token_text(render_prompt(plain, "How many?")[0]) == "<start_of_turn>"


@pytest.mark.parametrize("turns", [2, 4])
def test_generation_prompt_is_the_training_prefix(tokenizer, turns):
    chat = render_chat(tokenizer, TURNS[:turns])
    prompt = render_prompt(tokenizer, TURNS[: turns - 1])
    assert chat.ids[: len(prompt)].tolist() == prompt.tolist()
    assert chat.answer.start == len(prompt)
    assert tokenizer.decode(chat.ids[chat.answer]) == TURNS[turns - 1]["content"]


def test_string_is_one_message_of_the_user(tokenizer):
    assert render_prompt(tokenizer, "How many pens?").tolist() == render_prompt(tokenizer, [QUESTION]).tolist()


def test_prompt_boundary_tokens(variant):
    # "model " + " has" would give a token that begins in the prompt: " has" is one.
    changed = variant(
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + ':' + (' ' if m['role'] == 'assistant' else '') + m['content'] }}"
        "{{ '<end_of_turn>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.raises(UserError, match=r"reaches across the edge of an assistant turn, near .*assistant: has"):
        render_chat(changed, [QUESTION, {"role": "assistant", "content": "has"}])


def test_template_that_rewrites_earlier_turns_is_refused(variant):
    changed = variant(
        "{{ bos_token }}{% for m in messages %}{{ m['content'] if loop.last else 'gone' }}{{ '<end_of_turn>\\n' }}{% endfor %}"
    )
    with pytest.raises(UserError, match="renders a turn differently once later turns follow"):
        render_chat(changed, TURNS)


def test_template_without_terminator_is_refused(variant):
    changed = variant("{{ bos_token }}{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}")
    with pytest.raises(UserError, match=r"ends an assistant turn with none of .*never learn to stop"):
        render_chat(changed, TURNS)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([QUESTION], "no message has the role assistant"),
        ([ANSWER], "roles must alternate"),
        ([QUESTION, QUESTION, ANSWER], "roles must alternate"),
        ([{"role": "user", "content": "a<end_of_turn>b"}, ANSWER], "spells the special token <end_of_turn>"),
        ([QUESTION, {"role": "assistant", "content": "<bos>"}], "spells the special token <bos>"),
        ([{"role": "bot", "content": "a"}], "a message is .* got {'role': 'bot'"),
        ([{"role": "user", "content": None}], "a message is"),
        (["hello"], "a message is .* got 'hello'"),
    ],
)
def test_bad_messages(tokenizer, messages, message):
    with pytest.raises(UserError, match=message):
        render_chat(tokenizer, messages)


def test_template_is_sandboxed_and_its_mistakes_are_named(variant):
    with pytest.raises(UserError, match="the template refuses these messages: access to attribute '__class__'"):
        render_prompt(variant("{{ bos_token.__class__.__mro__ }}"), "x")
    with pytest.raises(UserError, match=r"chat_template\.jinja:2: "):
        render_prompt(variant("{{ bos_token }}\n{% if %}"), "x")


def test_tokenizer_without_template(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat template"):
        render_prompt(type(tokenizer).load(tmp_path), "x")
