"""Choices, several texts or images of an example, and speech count the right tokens, however padded or cut."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
from datasets import Dataset

from hf_stages import Stage, StagedTrainer, Teacher
from hf_stages.core.batch import SOURCE
from hf_stages.losses import (
    AttentionKL,
    AttentionMSE,
    AttentionRelation,
    EmbeddingCosine,
    HiddenMSE,
    LogitKL,
    LogitMSE,
    TaskLoss,
)
from hf_stages.losses.objective.by_source import OnSource
from hf_stages.losses.objective.update_sums import tokens_in_batch
from hf_stages.models.model_inputs import model_inputs
from hf_stages.models.real_tokens import Tokens, shape_of
from tests.losses import outside_trainer
from tests.support import tiny

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 40}
FEATURES = [HiddenMSE(), HiddenMSE(distance="cosine"), AttentionMSE(), AttentionKL(), AttentionRelation()]
LENGTHS = [[5, 2], [3, 6], [4, 4]]


class Pairs(tf.BertPreTrainedModel):
    """Somebody's own: two texts for each example, given as (batch, 2, length) and compared."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = tf.BertModel(config)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        states = self.bert(input_ids.flatten(0, 1), attention_mask=attention_mask.flatten(0, 1)).pooler_output
        one, other = states.unflatten(0, (-1, 2)).unbind(1)
        return {"logits": (one * other).sum(-1, keepdim=True)}


class Albums(tf.ViTPreTrainedModel):
    """Somebody's own: several images for each example, given as (batch, images, channels, height, width)."""

    def __init__(self, config):
        super().__init__(config)
        self.vit = tf.ViTModel(config)
        self.head = torch.nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, pixel_values=None, labels=None):
        states = self.vit(pixel_values.flatten(0, 1)).last_hidden_state[:, 0]
        return {"logits": self.head(states.unflatten(0, (len(pixel_values), -1)).mean(1))}


class Joined(Pairs):
    """Puts both texts into one row: nothing that the batch says fits its states."""

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        found = self.bert(input_ids.flatten(1), attention_mask=attention_mask.flatten(1))
        return {"logits": found.pooler_output}


def built(kind, config):
    def build(seed=0, **changes):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return kind(type(config).from_dict({**config.to_dict(), **changes})).eval()

    return build


BERT = tf.BertConfig(**SMALL, num_hidden_layers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
KINDS = {
    "bert": built(tf.BertForMultipleChoice, BERT),
    "electra": built(tf.ElectraForMultipleChoice, tf.ElectraConfig(**SMALL, embedding_size=8, num_hidden_layers=2)),
    "pairs": built(Pairs, BERT),
}


def choices(width: int) -> dict[str, torch.Tensor]:
    """Three examples of two choices, each of its own length, filled up to ``width``."""
    draw = torch.Generator().manual_seed(3)
    rows = [[torch.randint(3, 40, (n,), generator=draw) for n in lengths] for lengths in LENGTHS]
    ids = torch.stack([torch.stack([torch.nn.functional.pad(c, (0, width - len(c))) for c in row]) for row in rows])
    mask = torch.tensor([[[1] * n + [0] * (width - n) for n in lengths] for lengths in LENGTHS])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 1])}


def part(batch: dict[str, torch.Tensor], rows: slice | int) -> dict[str, torch.Tensor]:
    return {key: value[rows] for key, value in batch.items()}


@pytest.mark.parametrize("loss", FEATURES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_choices_count_as_rows(kind, loss):
    """At any padding and any cut: as one choice after the other, without padding, would give."""
    student, teacher = outside_trainer.two(KINDS[kind])
    found = [outside_trainer.value(loss, student, teacher, choices(width)).item() for width in (6, 12)]
    known = loss.for_models(student, teacher)
    batch, total = choices(6), 0.0
    for cut in (slice(0, 1), slice(1, 3)):
        few = part(batch, cut)
        total += (outside_trainer.value(loss, student, teacher, few) * known.items(few)).item()
    assert int(known.items(batch)) == sum(map(sum, LENGTHS))
    assert found == pytest.approx([total / 24] * 2, rel=1e-4)
    if isinstance(loss, HiddenMSE) and loss.distance == "mse" and kind != "pairs":
        assert found[0] == pytest.approx(_one_by_one(student, teacher, batch), rel=1e-4)


def _one_by_one(student, teacher, batch) -> float:
    total = 0.0
    for ids, mask in zip(batch["input_ids"].flatten(0, 1), batch["attention_mask"].flatten(0, 1), strict=True):
        inputs = {"input_ids": ids[: mask.sum()].reshape(1, 1, -1), "output_hidden_states": True}
        with torch.no_grad():
            mine, theirs = (model(**inputs).hidden_states for model in (student, teacher))
        for s, t in ((0, 0), (1, 2), (2, 4)):
            total += (mine[s] - theirs[t]).pow(2).mean(-1).sum().item()
    return total / int(batch["attention_mask"].sum())


@pytest.mark.parametrize(
    "loss", [HiddenMSE(), AttentionMSE(), AttentionRelation()], ids=lambda loss: type(loss).__name__
)
def test_choices_are_split_by_source(loss):
    """Each source's share adds up to the whole: the rows of an example go with it."""
    student, teacher = outside_trainer.two(KINDS["bert"])
    batch = {**choices(6), SOURCE: torch.tensor([0, 1, 0])}
    parts = [outside_trainer.value(OnSource(loss, name, i), student, teacher, batch) for i, name in enumerate("ab")]
    whole = outside_trainer.value(loss, student, teacher, choices(6))
    torch.testing.assert_close(sum(parts), whole)
    few = part(choices(6), slice(1, 2))
    alone = outside_trainer.value(loss, student, teacher, few) * few["attention_mask"].sum() / 24
    torch.testing.assert_close(parts[1], alone, rtol=1e-4, atol=1e-6)


def test_several_images_of_an_example_count_as_one():
    """An example counts once, whether its images are few or many, cut or not."""
    student, teacher = outside_trainer.two(built(Albums, tiny.vit_config()))
    images = torch.rand(4, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for loss in (HiddenMSE(), AttentionMSE(), AttentionRelation()):
        whole = outside_trainer.value(loss, student, teacher, {"pixel_values": images})
        parts = [outside_trainer.value(loss, student, teacher, {"pixel_values": one[None]}) for one in images]
        torch.testing.assert_close(whole, torch.stack(parts).mean())
        assert loss.for_models(student, teacher).items({"pixel_values": images}) == 4


def test_a_vision_tower_beside_text_counts_images():
    """What enters the tower are images: the text's mask is not theirs."""
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(
            **{**SMALL, "vocab_size": 1}, num_hidden_layers=2, image_size=16, patch_size=8
        ),
        text_config=tf.LlamaConfig(**SMALL, num_key_value_heads=2, num_hidden_layers=2),
        image_token_id=39,
        vision_feature_layer=-1,
    )
    student, teacher = (built(tf.LlavaForConditionalGeneration, config)(seed) for seed in (0, 1))
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[39] * 4 + [5, 6, 7], [39] * 4 + [8, 9, 0]])
    batch = {"input_ids": ids, "attention_mask": ids.ne(0).long(), "pixel_values": pixels}
    with torch.no_grad():
        mine, theirs = (
            model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[1] for model in (student, teacher)
        )
    loss = HiddenMSE({1: 1}, stack="vision_tower")
    torch.testing.assert_close(outside_trainer.value(loss, student, teacher, batch), (mine - theirs).pow(2).mean())
    assert loss.for_models(student, teacher).items(batch) == 2
    assert int(HiddenMSE({1: 1}, stack="language_model").for_models(student, teacher).items(batch)) == 13
    parts = {**batch, SOURCE: torch.tensor([0, 1])}
    shares = [outside_trainer.value(OnSource(loss, name, i), student, teacher, parts) for i, name in enumerate("ab")]
    torch.testing.assert_close(sum(shares), (mine - theirs).pow(2).mean())


@pytest.mark.parametrize(("images", "said"), [(3, "3 rows for 2 examples"), (4, "4 entries of pixel_values")])
def test_images_of_no_one_example_are_refused_by_source(images, said):
    """Images in one list for all examples: whose they are is not told."""

    class Listed(Albums):
        def forward(self, pixel_values=None, labels=None):
            return {"logits": self.head(self.vit(pixel_values).last_hidden_state[:, 0])}

    student, teacher = outside_trainer.two(built(Listed, tiny.vit_config()))
    batch = {"pixel_values": torch.rand(images, 3, 16, 16), SOURCE: torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=said):
        outside_trainer.value(OnSource(HiddenMSE(), "a", 0), student, teacher, batch)


def test_sentence_embeddings_of_pairs_count_rows():
    class Embeds(Pairs):
        def forward(self, input_ids=None, attention_mask=None):
            return self.bert(input_ids.flatten(0, 1), attention_mask=attention_mask.flatten(0, 1))

    student, teacher = outside_trainer.two(built(Embeds, BERT))
    for pooling in ("mean", "first", "last", "pooler"):
        loss = EmbeddingCosine(pooling)
        batch, flat = (
            choices(9),
            {k: v.flatten(0, 1)[:, None].expand(-1, 2, -1) for k, v in choices(6).items() if k != "labels"},
        )
        assert loss.for_models(student, teacher).items(batch) == 6
        torch.testing.assert_close(
            outside_trainer.value(loss, student, teacher, batch), outside_trainer.value(loss, student, teacher, flat)
        )


def test_a_model_that_makes_no_rows_of_them_is_refused():
    student, teacher = outside_trainer.two(built(Joined, BERT))
    with pytest.raises(ValueError, match="the batch has 6 rows of 6 tokens, but the model has states of 3 x 12"):
        outside_trainer.value(HiddenMSE(), student, teacher, choices(6))


def test_a_cache_holds_no_rows_of_choices(tmp_path):
    rows = Dataset.from_list([{k: v.tolist() for k, v in part(choices(6), i).items()} for i in range(3)])
    with pytest.raises(ValueError, match=r"hidden.2 has 6 rows for 3 examples.*use a live teacher"):
        Teacher(KINDS["bert"]()).cache(rows, tmp_path / "cache", logits=False, hidden=[2])


def test_tokens_without_a_mask_have_to_fit_as_well():
    """A model that puts tokens of its own before the text has states that no id is for."""
    with pytest.raises(ValueError, match="2 rows of 5 tokens, but the model has states of 2 x 7"):
        Tokens().weights({"input_ids": torch.ones(2, 5, dtype=torch.long)}, torch.zeros(2, 7, 4))


def test_tokens_of_choices_are_counted():
    batch = choices(8)
    assert int(tokens_in_batch(batch)) == 24
    positions = torch.where(batch["attention_mask"].bool(), batch["attention_mask"].cumsum(-1) - 1, -1)
    assert int(tokens_in_batch({"input_ids": batch["input_ids"], "position_ids": positions})) == 24
    assert int(tokens_in_batch({"input_ids": batch["input_ids"]})) == 48
    assert shape_of(batch) == (3, 2, 8)


def test_a_staged_run_on_choices_does_not_depend_on_the_cut(tmp_path):
    """Budget, training, evaluation: the numbers of the folder do not know the batch size."""
    rows = [
        {"input_ids": [[5] * a, [6] * b], "attention_mask": [[1] * a, [1] * b], "labels": i % 2}
        for i, (a, b) in enumerate([(3, 5), (2, 2), (6, 1), (4, 4)] * 2)
    ]

    def collate(examples):
        width = max(len(c) for e in examples for c in e["input_ids"])
        filled = {
            key: torch.tensor([[c + [0] * (width - len(c)) for c in e[key]] for e in examples])
            for key in ("input_ids", "attention_mask")
        }
        return {**filled, "labels": torch.tensor([e["labels"] for e in examples])}

    found = []
    for batch, accumulation, size in ((4, 1, 8), (2, 2, 1)):
        student, teacher = outside_trainer.two(KINDS["bert"])
        out = tmp_path / f"{batch}"
        args = tf.TrainingArguments(
            str(out), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            per_device_eval_batch_size=size, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        trainer = StagedTrainer(
            student, args, train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows[:4]),
            teacher=teacher, data_collator=collate,
            stages=[Stage("a", "54 tokens", loss=TaskLoss() + HiddenMSE() + AttentionMSE())],
        )  # fmt: skip
        assert trainer.plan().stages[0].steps == 2  # 27 tokens in four examples
        trainer.train()
        summary = json.loads((out / "01-a" / "stage.json").read_text())
        assert (summary["steps"], summary["tokens"]) == (2, 54)
        found.append({k: summary["metrics"][f"eval_{k}"] for k in ("loss", "HiddenMSE", "AttentionMSE")})
    assert found[1] == pytest.approx(found[0], rel=1e-4)


# ---- speech, images: encoders whose input is no text ----------------------------------------------------------------

_SPEECH = {
    "vocab_size": 40, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "max_target_positions": 20, "max_source_positions": 32,
}  # fmt: skip
LABELS = torch.tensor([[5, 6, 7, -100], [8, 9, 10, 11]])
FRAMES = torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(2))
MASK = (torch.arange(24) < torch.tensor([[24], [13]])).long()


def _captioner(config):
    model = tf.VisionEncoderDecoderModel(config)
    model.config.pad_token_id, model.config.decoder_start_token_id = 0, 1
    return model


_CAPTIONS = tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
    tf.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    ),
    tf.BertConfig(**SMALL, num_hidden_layers=2),
)  # fmt: skip
ENCODERS = {
    "whisper": (
        tf.WhisperForConditionalGeneration,
        tf.WhisperConfig(**{**_SPEECH, "max_source_positions": 12}, num_mel_bins=8),
        {"input_features": FRAMES},
    ),
    "speech2text": (
        tf.Speech2TextForConditionalGeneration,
        tf.Speech2TextConfig(**_SPEECH, input_feat_per_channel=8, conv_channels=16),
        {"input_features": FRAMES.transpose(1, 2), "attention_mask": MASK},
    ),
    "captioner": (
        _captioner,
        _CAPTIONS,
        {"pixel_values": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))},
    ),
}


def two_of(name):
    kind, config, batch = ENCODERS[name]
    models = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            models.append(kind(type(config).from_dict(config.to_dict())).eval())
    return *models, {**batch, "labels": LABELS}


@pytest.mark.parametrize("name", ENCODERS)
def test_labels_alone_make_the_decoders_inputs(name):
    """Run without labels, the model gives the logits that it gives with them."""
    student, teacher, batch = two_of(name)
    with torch.no_grad():
        whole = student(**batch)
        torch.testing.assert_close(student(**model_inputs(student, batch)).logits, whole.logits)
        logits = [model(**batch).logits[LABELS.ne(-100)].log_softmax(-1) for model in (student, teacher)]
        states = [model(**batch, output_hidden_states=True) for model in (student, teacher)]
    expected = torch.nn.functional.kl_div(*logits, reduction="batchmean", log_target=True)
    torch.testing.assert_close(
        outside_trainer.value(LogitKL(), student, teacher, batch), expected, rtol=1e-3, atol=1e-6
    )
    assert outside_trainer.value(LogitMSE(), student, teacher, batch) > 0
    for stack in ("encoder", "decoder"):
        mask = LABELS.ne(-100).float() if stack == "decoder" else _frames(student, states[0])
        mine, theirs = (s[f"{stack}_hidden_states"][1] for s in states)
        apart = ((mine - theirs).pow(2).mean(-1) * mask).sum() / mask.sum()
        found = outside_trainer.value(HiddenMSE({1: 1}, stack=stack), student, teacher, batch)
        torch.testing.assert_close(found, apart, rtol=1e-3, atol=1e-6)
        for loss in (AttentionMSE(stack=stack), AttentionRelation(stack=stack)):
            assert outside_trainer.value(loss, student, teacher, batch) > 0


def _frames(model, outputs):
    shape = outputs.encoder_last_hidden_state.shape[:2]
    if not isinstance(model, tf.Speech2TextForConditionalGeneration):
        return torch.ones(shape)
    return model._get_feature_vector_attention_mask(shape[1], MASK).float()


def test_samples_of_speech_are_masked_as_the_model_shortens_them():
    config = tf.Wav2Vec2Config(
        **SMALL, num_hidden_layers=2, conv_dim=[8, 8], conv_stride=[4, 2], conv_kernel=[4, 2],
        num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, add_adapter=True, feat_extract_norm="layer",
    )  # fmt: skip
    student, teacher = (built(tf.Wav2Vec2ForCTC, config)(seed).eval() for seed in (0, 1))
    mask = (torch.arange(200) < torch.tensor([[200], [90]])).long()
    batch = {"input_values": torch.randn(2, 200) * mask, "attention_mask": mask}
    loss = HiddenMSE({1: 1}, stack="encoder")
    known = loss.for_models(student, teacher)
    assert int(known.items(batch)) == 25 + 11  # floor of samples / 8
    with torch.no_grad():
        mine, theirs = (model(**batch, output_hidden_states=True).hidden_states[1] for model in (student, teacher))
    apart = (mine - theirs).pow(2).mean(-1)
    expected = (apart[0].sum() + apart[1, :11].sum()) / 36
    torch.testing.assert_close(outside_trainer.value(loss, student, teacher, batch), expected, rtol=1e-3, atol=1e-6)


def test_a_decoder_that_makes_its_inputs_in_a_way_of_its_own_is_refused():
    """A class out of a module that has no function for it, such as remote code."""
    kind = type("Foreign", (tiny.T5ForConditionalGeneration,), {})
    model = tiny.t5()
    model.__class__ = kind
    kind.prepare_decoder_input_ids_from_labels = kind._shift_right = None
    with pytest.raises(ValueError, match="Foreign makes its decoder's inputs from labels in a way of its own"):
        model_inputs(model, {"input_ids": LABELS.clamp(min=0), "labels": LABELS})
