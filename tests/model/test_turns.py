"""Where an assistant's turn ends, templates of base models, thoughts, messages, dropout, and weights that stand
still."""

import pytest
import torch
from conftest import compose_config, make_prompts
from transformers import GPT2Config, GPT2LMHeadModel

from expo.config import ModelConf, PromptsConf, UserError, check, identity
from expo.ground.problem import Problem
from expo.ladder.policy import ladder_model, ladder_tokenizer
from expo.model.checks import check_rounding
from expo.model.modes import with_dropout, without_dropout
from expo.model.policy import PLAIN, _problem_of, load_policy
from expo.model.prompts import Prompts, text_ids, turn_end
from expo.model.scoring import score, token_batch
from expo.model.small import random_tiny
from expo.rollout.engine import eos_ids

# Of Qwen2.5 base: its eos is another token than the one that ends a turn.
CHATML = (
    "{% for m in messages %}<|system|>{{ m['role'] }}\n{{ m['content'] }}<|assistant|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|system|>assistant\n{% if enable_thinking is not defined or enable_thinking %}{% "
    "if opens %}<think>\n{% endif %}{% endif %}{% endif %}"
)


@pytest.fixture
def tiny():
    return random_tiny()


def problem(question="1?", **more):
    return Problem("p", question, "1", **more)


def test_a_turn_ends_with_what_the_template_writes_after_it(tiny, caplog):
    model, tokenizer = tiny
    assert turn_end(tokenizer) == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    tokenizer.chat_template = CHATML
    end = tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert turn_end(tokenizer) == end != tokenizer.eos_token_id
    assert {end, tokenizer.eos_token_id} <= set(eos_ids(model, tokenizer))  # a rollout stops at either
    assert make_prompts("{question}", "{question}{answer}").solution_ids(tokenizer, "So 1.") == [
        *text_ids(tokenizer, "So 1."),
        end,
    ]
    for template in (
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
        "{{ raise_exception('no') }}",
        "{{ messages[0]['content'] }}",
    ):
        tokenizer.chat_template = template  # which ends a turn with no token, or takes none
        assert turn_end(tokenizer) == turn_end(tokenizer) == tokenizer.eos_token_id
    assert caplog.text.count("the chat template renders no turn of the assistant's (TemplateError: no)") == 1


def test_a_solution_begins_as_an_assistants_turn_does_in_the_template(tiny):
    _, tokenizer = tiny
    tokenizer.chat_template = PLAIN
    prompts = Prompts(PromptsConf(solve="{question}", explain="{question}{answer}"))
    asked, told = prompts.solve_ids(tokenizer, [problem()])[0], prompts.solution_ids(tokenizer, "So 1.")
    shown = Prompts(PromptsConf(solve="{question}", explain="{question}{answer}", examples=1))
    shown.examples = [problem("2?", solution="So 1.")]
    assert tokenizer.decode(asked + told[:-1]).endswith("Assistant: So 1.")
    assert "Assistant: So 1." in tokenizer.decode(shown.solve_ids(tokenizer, [problem()])[0])


def test_a_solution_stands_after_the_thoughts_that_a_template_opens(tiny):
    _, tokenizer = tiny
    tokenizer.chat_template = CHATML
    plain = Prompts(PromptsConf(solve="{question}", explain="{question}{answer}"))
    opened = Prompts(PromptsConf(solve="{question}", explain="{question}{answer}", template_options={"opens": True}))
    closed = Prompts(
        PromptsConf(
            solve="{question}", explain="{question}{answer}", template_options={"opens": True, "enable_thinking": False}
        )
    )
    assert tokenizer.decode(opened.solution_ids(tokenizer, "So 1.")).startswith("\n</think>\n\nSo 1.")
    assert closed.solution_ids(tokenizer, "So 1.") == plain.solution_ids(tokenizer, "So 1.")
    assert tokenizer.decode(opened.solve_ids(tokenizer, [problem()])[0]).endswith("<think>\n")


def test_an_option_that_the_template_lacks_is_one_line(tiny):
    _, tokenizer = tiny
    tokenizer.chat_template = CHATML
    for option in ("opens", "opnes"):
        prompts = Prompts(
            PromptsConf(solve="{question}", explain="{question}{answer}", template_options={option: True})
        )
        if option == "opens":
            prompts.check(tokenizer, "their/model")
        else:
            with pytest.raises(
                UserError, match=r"prompts.template_options.opnes: the chat template of their/model has"
            ):
                prompts.check(tokenizer, "their/model")


def test_a_rows_own_messages_come_before_the_question_and_its_system_message_counts(tiny):
    _, tokenizer = tiny
    prompts = Prompts(PromptsConf(solve="Q {question}", explain="{question}{answer}", system="General."))
    turns = (("system", "Own."), ("user", "Hi"), ("assistant", "Ho"))
    said = [tokenizer.decode(ids) for ids in prompts.solve_ids(tokenizer, [problem(), problem(earlier=turns)])]
    assert said[0].startswith("<|system|> General. <|user|> Q 1?")
    assert said[1].startswith("<|system|> Own. <|user|> Hi <|assistant|> Ho <|end|><|user|> Q 1?")
    hostile = problem("<|end|>", earlier=(("user", "a <|end|> b"), ("assistant", "c")))
    [ids] = prompts.solve_ids(tokenizer, [hostile])
    assert ids.count(tokenizer.eos_token_id) == 1  # the template's own; those in the data are text
    assert tokenizer.decode(ids).count("<|end|>") == 3


def test_an_empty_system_message_is_one(tiny):
    _, tokenizer = tiny
    none, empty = (Prompts(PromptsConf(solve="{question}", explain="{question}{answer}", system=s)) for s in (None, ""))
    assert "<|system|>" not in tokenizer.decode(none.solve_ids(tokenizer, [problem()])[0])
    assert tokenizer.decode(empty.solve_ids(tokenizer, [problem()])[0]).startswith("<|system|>")


def injecting(end):
    """A template that writes a system message of its own where it is given none, as Qwen2.5's and SmolLM2's do."""
    return (
        "{% if messages[0]['role'] != 'system' %}<|system|>You are kind.END\n{% endif %}"
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}END\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ).replace("END", end)


@pytest.mark.parametrize("end", ["<|end|>", ""])
def test_no_system_message_is_none_where_the_template_writes_its_own(tiny, end, caplog):
    _, tokenizer = tiny
    tokenizer.chat_template = injecting(end)
    texts = {"solve": "{question}", "explain": "{question}{answer}"}
    own, none = (Prompts(PromptsConf(**texts, template_system=keep)) for keep in (True, False))
    none.check(tokenizer, "m")
    assert caplog.text == ""
    own.check(tokenizer, "m")
    own.check(tokenizer, "m")  # once is enough
    assert caplog.text.count("m: its chat template writes a system message of its own (<|system|>You are kind.") == 1
    turns = (("user", "Hi"), ("assistant", "Ho"))
    for hostile in ("1?", "<|end|>"):
        problems = [problem(hostile), problem(hostile, earlier=turns), problem(hostile, earlier=(("system", "Own."),))]
        kept, cut = ([tokenizer.decode(i) for i in p.solve_ids(tokenizer, problems)] for p in (own, none))
        assert all(text.startswith("<|system|>") and text.count("You are kind.") == 1 for text in kept[:2])
        assert all(text.startswith("<|user|>") for text in cut[:2])
        assert [k.replace(" ", "").endswith(c.replace(" ", "")) for k, c in zip(kept, cut, strict=True)] == [True] * 3
        assert kept[2] == cut[2]  # a row's own stays


# What turns begin and end with; the first is the tokenizer's BOS, as SmolLM2's <|im_start|> is.
CHAT = "{% if messages[0]['role'] != 'system' %}OPENsystem\nYou are kind.END\n{% endif %}" + (
    "{% for m in messages %}OPEN{{ m['role'] }}\n{{ m['content'] }}END\n{% endfor %}{% if add_generation_prompt "
    "%}OPENassistant\n{% endif %}"
)
MODEL = "OPENsystem\nYou are a model.END\n"  # gpt-oss writes this first, whatever it is given


@pytest.mark.parametrize(
    ("template", "begins"),
    [
        (CHAT.replace("OPEN", "<|user|>").replace("END", "<|end|>"), "<|user|>user\n?"),
        ("<|system|>" + CHAT.replace("OPEN", "<|user|>").replace("END", "<|end|>"), "<|system|><|user|>user\n?"),
        (CHAT.replace("OPEN", "").replace("END", "<|end|>"), "user\n?"),
        ("{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
         "<|user|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}", "<|user|><|user|>user\n?"),
        # Refused: the end of a turn is text here, and there a system turn that no message takes the place of.
        (CHAT.replace("OPEN", "<|user|>").replace("END", "<|stop|>"), None),
        (MODEL.replace("OPEN", "<|user|>").replace("END", "<|end|>")
         + CHAT.replace("OPENsystem", "OPENdeveloper").replace("OPEN", "<|user|>").replace("END", "<|end|>"), None),
        ("You are kind. {% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}", None),
    ],
)  # fmt: skip
def test_what_is_left_without_a_templates_own_system_message(tiny, template, begins):
    _, tokenizer = tiny
    tokenizer.bos_token, tokenizer.chat_template = "<|user|>", template
    prompts = Prompts(PromptsConf(solve="{question}", explain="{question}{answer}", template_system=False))
    if begins is None:
        with pytest.raises(UserError, match=r"prompts\.template_system=false"):
            prompts.check(tokenizer, "m")
        return
    prompts.check(tokenizer, "m")
    assert prompts._rendered(tokenizer, "?").startswith(begins)


def test_a_template_whose_system_message_cannot_be_told_apart_is_refused(tiny):
    _, tokenizer = tiny
    texts = {"solve": "{question}", "explain": "{question}{answer}", "template_system": False}
    tokenizer.chat_template = CHATML
    assert Prompts(PromptsConf(**texts)).template_system(tokenizer) == ""
    for template in (
        "{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}",
        "{{ messages[0]['content'] }}",
    ):
        tokenizer.chat_template = template
        with pytest.raises(UserError, match=r"prompts\.template_system=false"):
            Prompts(PromptsConf(**texts)).check(tokenizer, "m")
    with pytest.raises(UserError, match=r"without effect beside prompts\.system="):
        check(compose_config("prompts.template_system=false", "prompts.system=Hi", "dataset=ladder"))


def saved(tmp_path, template=None, **special):
    model, tokenizer = random_tiny()
    tokenizer.chat_template = template
    for name, value in special.items():
        setattr(tokenizer, name, value)
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_a_base_model_without_a_template_takes_the_plain_one(tmp_path):
    folder = saved(tmp_path)
    with pytest.raises(UserError, match=r"no chat template; set model\.chat_template=plain"):
        load_policy(ModelConf(path=str(folder)))
    _, tokenizer = load_policy(ModelConf(path=str(folder), chat_template="plain"))
    prompts = make_prompts("{question}", "{question}{answer}")
    assert tokenizer.decode(prompts.solve_ids(tokenizer, [problem()])[0]) == "User: 1?\n\nAssistant:"
    assert turn_end(tokenizer) == tokenizer.eos_token_id
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}")
    _, tokenizer = load_policy(ModelConf(path=str(folder), chat_template=str(own)))
    assert tokenizer.decode(prompts.solve_ids(tokenizer, [problem()])[0]) == "<|user|>1?"


def test_a_template_file_is_known_by_its_content(tmp_path):
    one, other = tmp_path / "one.jinja", tmp_path / "other.jinja"
    for path in (one, other):
        path.write_text("{{ messages[0]['content'] }}")
    base = ["dataset=gsm8k", "model=hf", "model.path=a/b"]
    marks = {identity(compose_config(*base, f"model.chat_template={path}")) for path in (one, other)}
    assert len(marks) == 1
    other.write_text("{{ messages[-1]['content'] }}")
    assert identity(compose_config(*base, f"model.chat_template={other}")) not in marks | {
        identity(compose_config(*base))
    }
    with pytest.raises(UserError, match=r"model.chat_template=none.jinja: no such file"):
        check(compose_config(*base, "model.chat_template=none.jinja"))


def test_a_tokenizer_without_an_end_is_told_why(tmp_path):
    tokenizer = ladder_tokenizer()
    ladder_model(0).save_pretrained(tmp_path)
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="names no end-of-sequence token"):
        load_policy(ModelConf(path=str(tmp_path)))


def test_only_tokens_that_a_prompt_can_hold_need_a_row_of_the_embedding(tiny):
    model, tokenizer = tiny
    assert _problem_of(model, tokenizer) is None
    rows = model.get_input_embeddings().num_embeddings
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [f"<image {i}>" for i in range(rows + 1 - len(tokenizer))]}
    )
    assert len(tokenizer) == rows + 1
    assert _problem_of(model, tokenizer) is None  # an image's, as in Gemma 3's text models
    last = tokenizer.convert_ids_to_tokens(rows)
    tokenizer.chat_template = f"{{{{ messages[0]['content'] }}}}{last}"
    assert "take the tokenizer that belongs to it" in _problem_of(model, tokenizer)


def test_dropout_is_off_and_training_mode_stays():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=50, bos_token_id=0, eos_token_id=0)
    ).train()
    rows = token_batch([[1, 2, 3]], [[4, 5, 6, 7]], 0, "cpu")
    assert not torch.equal(score(model, rows), score(model, rows))  # GPT-2's own 0.1
    without_dropout(model)
    assert model.training
    assert torch.equal(score(model, rows), score(model, rows))
    assert torch.allclose(score(model, rows), score(model.eval(), rows), atol=1e-6)
    model.train()
    with with_dropout(model):  # trainer.dropout
        assert not torch.equal(score(model, rows), score(model, rows))
    assert torch.equal(score(model, rows), score(model, rows))


def test_dropout_of_a_model_that_has_none_is_refused(tiny):
    without_dropout(tiny[0])
    with pytest.raises(UserError, match=r"trainer\.dropout=true: the model has no dropout"), with_dropout(tiny[0]):
        pass
    for line, told in [
        (["model.gradient_checkpointing=true"], "computes activations again"),
        (["algorithm=opsd"], "the student without it"),
    ]:
        with pytest.raises(UserError, match=told):
            check(compose_config("trainer.dropout=true", "dataset=ladder", *line))


@pytest.mark.parametrize(
    ("dtype", "rate", "kept"), [("bfloat16", 1e-6, False), ("bfloat16", 1e-3, True), ("float32", 1e-6, True)]
)
def test_weights_that_a_step_would_not_move_are_refused(tiny, dtype, rate, kept):
    model, _ = tiny
    model.to(getattr(torch, dtype))
    if kept:
        check_rounding(model, dtype, rate)
        return
    with pytest.raises(UserError, match=r"model.dtype=bfloat16: at optimizer.learning_rate=1e-06 a step moves \d%"):
        check_rounding(model, dtype, rate)
    model.half()
    with pytest.raises(UserError, match=r"model.dtype=float16: the squares of most gradients"):
        check_rounding(model, "float16", 1e-3)
    for p in model.parameters():
        p.requires_grad_(False)
    check_rounding(model, dtype, rate)  # under an adapter
