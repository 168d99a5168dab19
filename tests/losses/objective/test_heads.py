"""With every kind of head, an update equals plain Trainer's on one batch of eight, however it is cut or padded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from datasets import IterableDataset
from transformers import CLIPConfig, CLIPModel, LlamaForCausalLM, Trainer

from hf_stages import Stage, StagedTrainer
from hf_stages.losses import TaskLoss
from hf_stages.losses.objective.task_probe import find_reduction
from hf_stages.models.reduction import Count, Reduction
from tests.support import tiny
from tests.support.runs import StopAt
from tests.workers.cases import Pad, Rows, apart, arguments, text, uneven
from tests.workers.heads import HEADS, Head, PadAll, begun, mixtral, update

each_head = pytest.mark.parametrize("name", HEADS)


@each_head
def test_an_update_does_not_depend_on_the_cut(name, tmp_path):
    head = HEADS[name]
    whole = update(tmp_path / "plain", head, 8, kind=Trainer)
    assert max(g.abs().max().item() for g in whole.values()) > 1e-4
    cuts = {"8": (8, 1, 0), "2x4": (2, 4, 0), "1x8": (1, 8, 0), **({"padded": (4, 2, 5)} if head.pads else {})}
    for cut, (batch, accumulation, extra) in cuts.items():
        found = update(tmp_path / cut, head, batch, accumulation, extra=extra)
        assert apart(found, whole, floor=0.02) < head.same, cut  # some biases have no gradient but rounding


@each_head
def test_an_evaluation_does_not_depend_on_the_cut(name, tmp_path):
    head = HEADS[name]
    losses = {}
    for batch in (8, 3):
        args = arguments(tmp_path, per_device_eval_batch_size=batch, **head.args)
        trainer = StagedTrainer(
            head.model(), args, train_dataset=Rows(head.rows()), eval_dataset=Rows(head.rows()),
            data_collator=head.collator(), stages=[Stage("one", "1 steps")],
        )  # fmt: skip
        losses[batch] = trainer.evaluate()["eval_loss"]
    args = arguments(tmp_path, per_device_eval_batch_size=8, **head.args)
    plain = Trainer(head.model(), args, data_collator=head.collator()).evaluate(Rows(head.rows()))["eval_loss"]
    assert losses[3] == pytest.approx(losses[8], rel=1e-5)
    assert losses[8] == pytest.approx(plain / 8 if name == "CTC, sum" else plain, rel=1e-5)  # of a sum the mean by row


# ---- how it is found out ---------------------------------------------------------------------------------------------


def found(trainer, batch):
    return find_reduction(trainer, trainer.compute_loss, TaskLoss().for_models(trainer.model, None), batch)


def staged(out, head, **options):
    args = arguments(out, **{**head.args, **options.pop("args", {})})
    given = {"train_dataset": Rows(head.rows()), "data_collator": head.collator(), "stages": [Stage("one", "4 steps")]}
    return StagedTrainer(head.model(), args, **{**given, **options})


def test_a_known_loss_costs_no_forward(tmp_path):
    trainer = staged(tmp_path, HEADS["next token"])
    trainer.model.forward = None
    assert found(trainer, Pad()(text(uneven)())) is None


class Unmoved(LlamaForCausalLM):
    """Hands its labels to transformers' loss as moved already."""

    def forward(self, input_ids=None, labels=None, **kwargs):
        logits = super().forward(input_ids=input_ids, **kwargs).logits
        return {"loss": self.loss_function(logits, None, self.config.vocab_size, shift_labels=labels), "logits": logits}


def test_a_models_own_way_with_a_known_loss_is_seen(tmp_path):
    trainer = staged(tmp_path, HEADS["next token"])
    trainer.model = Unmoved(tiny.llama_config())
    assert found(trainer, Pad()(text(begun)())).counts == (Count("labels", ignore=-100),)


def test_prompt_tuning_counts_the_first_label(tmp_path):
    """It adds tokens before the text, and labels for them: moved by one, none of the text's is lost."""
    peft = pytest.importorskip("peft")
    trainer = staged(tmp_path, HEADS["next token"])
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    trainer.model = peft.get_peft_model(tiny.llama(), config)
    assert found(trainer, Pad()(text(begun)())).counts == (Count("labels", ignore=-100),)


@pytest.mark.parametrize("kind", ["BartForCausalLM", "BertForPreTraining"])
def test_weights_and_the_ranks_rows_do_not_change_what_is_found(kind, tmp_path):
    """What is found is of the model and the data: trained or not, and on whichever rows."""
    head = HEADS["two heads" if kind == "BertForPreTraining" else "next token, not moved inside"]
    trainer, rows = staged(tmp_path, head), head.rows()
    first = found(trainer, head.collator()(rows))
    for parameter in trainer.model.parameters():
        torch.nn.init.normal_(parameter)
    assert found(trainer, head.collator()(rows[3:5])).counts == first.counts


def test_the_look_changes_neither_generators_nor_weights_nor_modes(tmp_path):
    head = HEADS["CTC, sum"]
    trainer = staged(tmp_path, head)
    trainer.model.train()
    trainer.model.lm_head.eval()
    state, before = torch.get_rng_state(), [p.clone() for p in trainer.model.parameters()]
    assert found(trainer, head.collator()(head.rows())).summed
    assert torch.equal(state, torch.get_rng_state())
    assert trainer.model.training
    assert not trainer.model.lm_head.training
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(trainer.model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["two heads", "CTC, sum", "masked images"])
def test_what_was_found_is_written_with_a_checkpoint(name, tmp_path, monkeypatch):
    """A resumed run goes by it, and weighs as the whole one: it does not look again."""
    head = HEADS[name]
    given = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    given |= {"save_strategy": "steps", "save_steps": 1}
    whole = staged(tmp_path / "whole", head, args=given)
    whole.train()
    staged(tmp_path / "cut", head, args=given, callbacks=[StopAt(2)]).train()
    monkeypatch.setattr("hf_stages.losses.objective.task_probe.find_reduction", None)
    again = staged(tmp_path / "cut", head, args=given)
    again.train(resume_from_checkpoint=True)
    assert all(torch.equal(t, whole.model.state_dict()[n]) for n, t in again.model.state_dict().items())


def test_what_was_found_reads_back_as_written():
    parts = (None, Count("labels", ignore=255, weights=(1.0, 2.0)), Count("labels", shift=True, inside=True))
    reduction = Reduction(parts, (1.0, 0.5, 2.0), (0, 2, 3), adds=True)
    assert Reduction.from_dict(reduction.to_dict()) == reduction


def test_a_stream_loses_no_row(tmp_path):
    head, seen = HEADS["CTC, sum"], []

    def rows():
        for index, row in enumerate(head.rows()):
            yield {**{key: value.tolist() for key, value in row.items()}, "index": index}

    class Collate(PadAll):
        def __call__(self, few):
            seen.extend(row["index"] for row in few)
            return super().__call__([{k: v for k, v in row.items() if k != "index"} for row in few])

    stream = IterableDataset.from_generator(rows)
    args = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "remove_unused_columns": False}
    staged(
        tmp_path, head, args=args, train_dataset=stream, data_collator=Collate(), stages=[Stage("a", "2 steps")]
    ).train()
    assert seen[:8] == list(range(8))


def test_a_contrastive_loss_is_named_where_batches_are_cut(tmp_path, caplog):
    """Each row's loss is of its batch."""
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text_ = {**part, "vocab_size": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = CLIPConfig(text_config=text_, vision_config={**part, "image_size": 8, "patch_size": 4}, projection_dim=8)
    rows = [
        {"input_ids": torch.tensor([1, 3 + i, 4, 2]), "pixel_values": torch.randn(3, 8, 8), "return_loss": True}
        for i in range(8)
    ]

    def collate(few):
        return {**{k: torch.stack([row[k] for row in few]) for k in ("input_ids", "pixel_values")}, "return_loss": True}

    head = Head(lambda: CLIPModel(config), lambda: rows)
    for batch, accumulation, named in ((8, 1, False), (4, 2, True)):
        args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        staged(tmp_path / str(batch), head, args=args, data_collator=collate, stages=[Stage("one", "1 steps")]).train()
        assert ("does not add up over parts of a batch" in caplog.text) is named


def test_what_adds_up_in_no_way_is_said_where_batches_are_cut(tmp_path, caplog):
    """A loss that is written out and couples rows. One batch for an update is as it is."""

    def coupled(outputs, labels, num_items_in_batch=None):
        return outputs.logits.std()

    given = {"compute_loss_func": coupled, "args": {"per_device_train_batch_size": 4}}
    staged(tmp_path / "a", HEADS["classification"], **given).train()
    assert "does not add up" not in caplog.text
    given["args"] |= {"gradient_accumulation_steps": 2}
    staged(tmp_path / "b", HEADS["classification"], **given).train()
    assert "does not add up over parts of a batch" in caplog.text


def test_a_batch_without_a_target_of_the_others_is_refused(tmp_path):
    head = HEADS["two heads"]

    def collate(rows):
        batch = head.collator()(rows)
        return (
            batch
            if rows[0]["next_sentence_label"] == 0
            else {k: v for k, v in batch.items() if k != "next_sentence_label"}
        )

    args = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    rows = sorted(head.rows(), key=lambda row: row["next_sentence_label"])
    with pytest.raises(
        ValueError, match=r"a batch has no 'next_sentence_label', over which the loss of the first batch ran"
    ):
        staged(tmp_path, head, args={**args, "train_sampling_strategy": "sequential"}, train_dataset=Rows(rows),
               data_collator=collate).train()  # fmt: skip


@pytest.mark.slow
def test_parts_of_a_compiled_model_are_found(tmp_path):
    """Its forward runs uncompiled where its parts are weighed apart."""
    head = HEADS["two heads"]
    compiled = replace(head, args={"torch_compile": True, "torch_compile_backend": "aot_eager"})
    whole, cut = update(tmp_path / "8", head, 8), update(tmp_path / "2x4", compiled, 2, 4)
    cut = {name.removeprefix("_orig_mod."): gradient for name, gradient in cut.items()}
    assert apart(cut, whole, floor=0.02) < head.same


def test_positions_that_all_lie_outside_are_no_item(tmp_path):
    """One micro-batch of them counts as nothing; an update of them is refused, where Trainer's loss is NaN."""
    head = HEADS["question answering"]
    outside = [{**row, "start_positions": 99, "end_positions": 99} for row in head.rows()]
    args = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "train_sampling_strategy": "sequential"}
    given = {"args": args, "stages": [Stage("one", "1 steps")]}
    trainer = staged(tmp_path / "a", head, train_dataset=Rows(outside[:4] + head.rows()[4:]), **given)
    trainer.train()
    expected = head.model().train()(**head.collator()(head.rows()[4:])).loss.item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="TaskLoss: an update without a single item"):
        staged(tmp_path / "b", head, train_dataset=Rows(outside), **given).train()


def test_a_routers_loss_is_not_additive_as_documented(tmp_path, caplog):
    """It is of a micro-batch's routing; what is additive beside it stays so."""
    head = Head(mixtral(output_router_logits=True, router_aux_loss_coef=0.02), text(uneven))
    whole, cut = update(tmp_path / "8", head, 8), update(tmp_path / "2x4", head, 2, 4)
    assert apart(update(tmp_path / "plain", head, 8, kind=Trainer), whole) < 1e-5
    assert "does not add up over parts of a batch" in caplog.text
    assert 1e-3 < apart(whole, cut, floor=0.02) < 0.2
