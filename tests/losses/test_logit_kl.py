"""LogitKL against a few plain lines, on real models; what it refuses, and how it says so."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from hf_stages.core.curves import Linear
from hf_stages.losses import LogitKL, LogitMSE
from hf_stages.models.signals import Head, Signals
from tests.support import tiny

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
MNLI = ["entailment", "neutral", "contradiction"]


def bert(auto="SequenceClassification", **changes):
    torch.manual_seed(changes.pop("seed", 0))
    model = getattr(tf, f"AutoModelFor{auto}").from_config(tf.BertConfig(vocab_size=40, **SMALL, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)  # logits apart, so that the loss is no rounding error
    return model


def named(labels, **changes):
    return bert(id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)}, **changes)


def kl(student, teacher, temperature=1.0):
    """KL(teacher||student) of rows of logits, as PyTorch writes it."""
    s, t = (torch.log_softmax(z / temperature, -1) for z in (student, teacher))
    return torch.nn.functional.kl_div(s, t, reduction="sum", log_target=True) * temperature**2


def signals(model, batch):
    return Signals(model(**{key: value for key, value in batch.items() if "label" not in key}))


def value(loss, student, teacher, batch, t=0.0):
    loss = loss.for_models(student, teacher)
    with torch.no_grad():
        theirs = signals(teacher, batch)
    return loss(signals(student, batch), theirs, batch, t)


def text(model, *, extra=0, side="right"):
    rows = [list(range(3, 9)), list(range(10, 14))]
    width = max(map(len, rows)) + extra
    pads = [[0] * (width - len(row)) for row in rows]
    joined = [(r + p if side == "right" else p + r) for r, p in zip(rows, pads, strict=True)]
    ids = torch.tensor(joined)
    mask = ids.ne(0).long()
    given = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    return (
        given if model.config.model_type != "llama" else {**given, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_rows_equal_plain_kl(temperature):
    student, teacher = bert(num_labels=3), bert(num_labels=3, seed=1)
    batch = {**text(student), "labels": torch.tensor([1, -100])}
    loss = LogitKL(temperature).for_models(student, teacher)
    s, t = (signals(model, batch).logits for model in (student, teacher))
    assert loss.items(batch) == 2
    torch.testing.assert_close(value(loss, student, teacher, batch), kl(s, t, temperature))


def test_images_equal_plain_kl():
    student, teacher = tiny.vit(), tiny.vit(1)
    batch = {"pixel_values": torch.rand(4, 3, 16, 16)}
    assert LogitKL().for_models(student, teacher).items(batch) == 4
    expected = kl(student(**batch).logits, teacher(**batch).logits)
    torch.testing.assert_close(value(LogitKL(), student, teacher, batch), expected)


def test_next_tokens_equal_plain_kl_whatever_the_padding():
    student, teacher = (tiny.llama(seed, initializer_range=0.3).eval() for seed in (0, 1))
    batch = text(student)
    s, t = (model(**{k: v for k, v in batch.items() if k != "labels"}).logits for model in (student, teacher))
    expected = kl(s[0, :5], t[0, :5]) + kl(s[1, :3], t[1, :3])
    loss = LogitKL().for_models(student, teacher)
    assert loss.items(batch) == 8
    torch.testing.assert_close(value(loss, student, teacher, batch), expected)
    for side, extra in [("right", 5), ("left", 0), ("left", 3)]:
        padded = text(student, side=side, extra=extra)
        assert loss.items(padded) == 8
        torch.testing.assert_close(value(loss, student, teacher, padded), expected, rtol=1e-4, atol=1e-5)
    batch["labels"][0, :4] = -100
    expected = kl(s[0, 3:5], t[0, 3:5]) + kl(s[1, :3], t[1, :3])
    torch.testing.assert_close(value(loss, student, teacher, batch), expected)


def test_masked_language_counts_labels_or_tokens():
    student, teacher = bert("MaskedLM"), bert("MaskedLM", seed=1)
    batch = text(student)
    batch["labels"][:, ::2] = -100
    s, t = (signals(model, batch).logits for model in (student, teacher))
    by_labels, by_tokens = batch["labels"] != -100, batch["attention_mask"] == 1
    assert by_labels.sum() == 5
    torch.testing.assert_close(value(LogitKL(), student, teacher, batch), kl(s[by_labels], t[by_labels]))
    every = LogitKL(on="tokens").for_models(student, teacher)
    assert every.items(batch) == 10
    torch.testing.assert_close(value(every, student, teacher, batch), kl(s[by_tokens], t[by_tokens]))


def test_an_encoder_decoder_counts_its_decoders_tokens():
    student, teacher = tiny.t5().eval(), tiny.t5(1).eval()
    labels = torch.tensor([[5, 6, 7, 1], [8, 1, -100, -100]])
    batch = {"input_ids": torch.arange(3, 13).view(2, 5), "labels": labels}
    outputs = [model(**batch) for model in (student, teacher)]
    loss = LogitKL().for_models(student, teacher)
    assert loss.items(batch) == 6
    s, t = (out.logits[labels != -100] for out in outputs)
    torch.testing.assert_close(loss(*map(Signals, outputs), batch, 0.0), kl(s, t))


@pytest.mark.parametrize("by", ["config", "labels"])
def test_several_labels_per_row_are_distributions_of_their_own(by):
    problem = "multi_label_classification" if by == "config" else None
    student, teacher = (bert(num_labels=3, problem_type=problem, seed=seed) for seed in (0, 1))
    batch = {**text(student), "labels": torch.rand(2, 3).round()}
    if by == "config":
        del batch["labels"]
    s, t = (torch.sigmoid(signals(model, batch).logits / 2) for model in (student, teacher))
    expected = 4 * (t * (t / s).log() + (1 - t) * ((1 - t) / (1 - s)).log()).sum()
    torch.testing.assert_close(value(LogitKL(2), student, teacher, batch), expected)


def test_head_and_logits_agree():
    student, teacher = tiny.llama().eval(), tiny.llama(1).eval()
    batch = text(student)
    loss = LogitKL(2, "jsd", beta=0.2).for_models(student, teacher)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids")}
    heads = [Signals(captured={"head": Head(m.model(**inputs)[0], m.lm_head)}) for m in (student, teacher)]
    found = loss(*heads, batch, 0.0)
    found.backward()
    slopes = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    expected = value(loss, student, teacher, batch)
    expected.backward()
    torch.testing.assert_close(found, expected)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.grad, slopes[name], msg=name)


def test_temperature_may_be_a_curve():
    student, teacher = bert(num_labels=3), bert(num_labels=3, seed=1)
    batch, s, t = text(student), *(signals(m, text(m)).logits for m in (student, teacher))
    for at, temperature in [(0, 4), (1, 1), (0.5, 2.5)]:
        found = value(LogitKL(Linear(4, 1)), student, teacher, {**batch, "labels": torch.tensor([0, 1])}, at)
        torch.testing.assert_close(found, kl(s, t, temperature))


def test_adapts_on_the_meta_device_and_leaves_the_loss_as_it_was():
    loss = LogitKL()
    with torch.device("meta"):
        adapted = loss.for_models(tiny.llama(), tiny.llama())
    batch = {"input_ids": torch.ones(2, 5), "attention_mask": torch.ones(2, 5)}
    assert adapted == loss
    assert adapted.items(batch) == 8
    assert loss.items(batch) == 2


def test_a_model_under_peft_is_known():
    pytest.importorskip("peft")
    from hf_stages.transforms import AddLora

    adapted = LogitKL().for_models(AddLora(2)(tiny.llama()), tiny.llama())
    assert adapted.items({"input_ids": torch.ones(2, 5)}) == 8


@pytest.mark.parametrize(
    ("auto", "config", "number"),
    [
        (
            "AutoModelForCausalLM",
            tf.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9, bos_token_id=0, eos_token_id=0),
            8,
        ),
        ("AutoModelForTokenClassification", tf.BertConfig(vocab_size=40, **SMALL), 10),
        ("AutoModelForMultipleChoice", tf.BertConfig(vocab_size=40, **SMALL), 10),
    ],
)
def test_kinds_of_outputs_are_known_by_class(auto, config, number):
    with torch.device("meta"):
        model = getattr(tf, auto).from_config(config)
    assert LogitKL().for_models(model, model).items({"labels": torch.ones(2, 5, dtype=torch.long)}) == number


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"direction": "backward"}, "direction: expected one of forward, reverse, jsd, got 'backward'"),
        ({"temperature": 0}, "temperature: expected more than 0"),
        ({"temperature": -1.0}, "temperature: expected more than 0"),
        ({"temperature": float("nan")}, "expected a finite number, got nan"),
        ({"temperature": True}, "expected a number or a curve"),
        ({"temperature": Linear(2, 0)}, "more than 0, got 0.0 at t=1"),
        ({"beta": 0}, "beta: expected a number between 0 and 1"),
        ({"beta": 1.0}, "beta: expected a number between 0 and 1"),
        ({"beta": "half"}, "beta: expected a number between 0 and 1"),
        ({"on": "all"}, "on: expected 'labels' or 'tokens'"),
    ],
)
def test_bad_arguments_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        LogitKL(**given)


@pytest.mark.parametrize("changes", [{"num_labels": 1}, {"num_labels": 3, "problem_type": "regression"}])
def test_regression_is_refused(changes):
    student, teacher = bert(**changes), bert(**changes)
    with pytest.raises(ValueError, match=r"regression head .* use LogitMSE"):
        LogitKL().for_models(student, teacher)
    LogitMSE().for_models(student, teacher)


@pytest.mark.parametrize("loss", [LogitKL(), LogitMSE()], ids=["kl", "mse"])
@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (lambda: bert(num_labels=3), lambda: bert(num_labels=4), "has 3 outputs .*, the teacher .* 4 "),
        (tiny.llama, lambda: tiny.llama(vocab_size=80), "has 64 outputs .*, the teacher .* 80 .*ResizeVocab"),
        (
            lambda: bert(num_labels=3),
            lambda: bert("TokenClassification", num_labels=3),
            "one output per row.*one per token",
        ),
        (tiny.llama, lambda: bert("MaskedLM"), "for the next token, the teacher .* one per token, for that token"),
        (
            lambda: named(MNLI),
            lambda: named(["contradiction", "entailment", "neutral"]),
            r"another order: class 0 is 'entailment' for the student and 'contradiction' for the teacher .*"
            r"id2label=\['contradiction', 'entailment', 'neutral'\]",
        ),
        (lambda: named(MNLI), lambda: named(["yes", "no", "maybe"]), "name different classes: class 0 is 'entailment'"),
        (
            lambda: bert(num_labels=3, problem_type="multi_label_classification"),
            lambda: bert(num_labels=3, problem_type="single_label_classification"),
            "problem_type is 'multi_label_classification' for the student and 'single_label_classification'",
        ),
        (
            lambda: bert("QuestionAnswering"),
            lambda: bert("QuestionAnswering"),
            "BertForQuestionAnswering has no logits",
        ),
    ],
)
def test_models_that_do_not_match_are_refused(loss, student, teacher, message):
    with torch.device("meta"), pytest.raises(ValueError, match=f"{type(loss).__name__}: .*{message}"):
        loss.for_models(student(), teacher())


@pytest.mark.parametrize("names", [None, MNLI, [name.upper() for name in MNLI]])
def test_default_names_and_other_cases_pass(names):
    teacher = bert(num_labels=3) if names is None else named(names)
    LogitKL().for_models(named(MNLI), teacher)


def test_the_real_number_of_rows_is_compared():
    """A head that was padded has more rows than the config's vocabulary says."""
    student, teacher = tiny.llama(), tiny.llama()
    teacher.lm_head = torch.nn.Linear(32, 72, bias=False)
    with pytest.raises(ValueError, match=r"has 64 outputs .*, the teacher .* 72 "):
        LogitKL().for_models(student, teacher)
