"""What a replay needs beside an incident's rows: how to build model and losses again, the batches, the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hf_stages.core.batch import DRAWN
from hf_stages.core.parts import part_to_dict
from hf_stages.core.ranks import from_all_ranks
from hf_stages.core.references import teaching_stage
from hf_stages.core.stage import own_or_shared
from hf_stages.data.collators.base import find_pair_collator
from hf_stages.planning.plan import PlannedStage
from hf_stages.reports.incidents import BATCHES, WEIGHTS, incident_file
from hf_stages.training.stage.kept_updates import KeptUpdate

MOST_BYTES = 64 * 2**20
"""The largest batches, and the largest weights, that are written beside an incident."""


def what_rebuilds(trainer: Any, planned: PlannedStage) -> dict[str, Any]:
    """Describe the model and the losses of a stage, so that a replay needs neither the recipe nor its script."""
    runner = trainer._runner
    reduction = trainer._stage.objective.reduction
    return {
        "base": trainer.blueprint.to_dict(),
        "transforms": [part_to_dict(one, "transforms") for one in runner.handover.transforms_up_to(planned.name)],
        "own_transforms": len(planned.stage.transforms),
        "loss": runner.manifest.declared(planned.name).get("loss"),
        "reduction": None if reduction is None else reduction.to_dict(),
        "scales": trainer._stage.objective.scales_by_name(),
        "teacher": _describe_teacher(trainer, planned),
        "folder": planned.folder,
        "parent": None if planned.parent is None else runner.plan[planned.parent].folder,
        "first_step": trainer._stage.progress.first_step,
        "in_pairs": find_pair_collator(trainer.data_collator) is not None,
    }


def _describe_teacher(trainer: Any, planned: PlannedStage) -> Any:
    """Describe where the teacher can be read again: ``{"folder": ...}``, a part, or None for one in memory."""
    teacher = own_or_shared(planned.stage, "teacher", trainer)
    if (earlier := teaching_stage(teacher)) is not None:
        return {"folder": trainer._runner.plan[earlier].folder}
    if teacher is None or isinstance(teacher, str):
        return teacher
    try:
        return part_to_dict(teacher, "teacher")
    except ValueError:
        return None


@dataclass(frozen=True)
class KeptTensors:
    """What lies beside an incident; None where it would be larger than ``MOST_BYTES``."""

    batches: dict[str, torch.Tensor] | None
    weights: dict[str, torch.Tensor] | None

    @classmethod
    def of_all_ranks(cls, trainer: Any, kept: KeptUpdate) -> KeptTensors:
        """Collect the micro-batches of all ranks, and the weights as they are now. Collective."""
        mine = _batch_tensors(kept, trainer.args.process_index)
        bytes_of_all = sum(from_all_ranks(_bytes(mine), trainer.args))
        batches = None
        if bytes_of_all <= MOST_BYTES:
            cpu = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in mine.items()}
            batches = {name: tensor for rank in from_all_ranks(cpu, trainer.args) for name, tensor in rank.items()}
        return cls(batches, _weights(trainer) if trainer.args.should_save else None)

    def write(self, out: Path, step: int) -> None:
        """Write what there is. The incident's own file comes after it."""
        path = incident_file(out, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix, tensors in ((BATCHES, self.batches), (WEIGHTS, self.weights)):
            place = path.with_suffix(suffix)
            if tensors is None:
                place.unlink(missing_ok=True)
                continue
            temporary = place.with_name(f".{place.name}.tmp")
            save_file(tensors, temporary)
            temporary.replace(place)


def batch_key(rank: int, micro_batch: int, column: str) -> str:
    """Name a column of a micro-batch among the tensors of an incident."""
    return f"{rank}.{micro_batch}.{column}"


def _batch_tensors(kept: KeptUpdate, rank: int) -> dict[str, torch.Tensor]:
    return {
        batch_key(rank, number, column): value
        for number, batch in enumerate(kept.batches)
        for column, value in batch.items()
        if torch.is_tensor(value) and column != DRAWN
    }


def _weights(trainer: Any) -> dict[str, torch.Tensor] | None:
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None
    state = trainer.model.state_dict()
    if _bytes(state) > MOST_BYTES:
        return None
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values() if torch.is_tensor(tensor))
