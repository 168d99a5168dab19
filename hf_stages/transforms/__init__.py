"""Transforms: what the model becomes before a stage's first step. One file each."""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.transforms.add_lora import AddLora as AddLora
    from hf_stages.transforms.base import Transform as Transform
    from hf_stages.transforms.binarize import Binarize as Binarize
    from hf_stages.transforms.freeze import Freeze as Freeze
    from hf_stages.transforms.insert_subln import InsertSubLN as InsertSubLN
    from hf_stages.transforms.make_recurrent import MakeRecurrent as MakeRecurrent
    from hf_stages.transforms.merge_lora import MergeLora as MergeLora
    from hf_stages.transforms.reduce_layers import ReduceLayers as ReduceLayers
    from hf_stages.transforms.reduce_width import ReduceWidth as ReduceWidth
    from hf_stages.transforms.resize_vocab import ResizeVocab as ResizeVocab
    from hf_stages.transforms.set_recurrence import SetRecurrence as SetRecurrence
    from hf_stages.transforms.set_task import SetTask as SetTask
    from hf_stages.transforms.split_ternary import SplitTernary as SplitTernary
    from hf_stages.transforms.ternarize import Ternarize as Ternarize
    from hf_stages.transforms.unfreeze import Unfreeze as Unfreeze

_EXPORTS = Exports(__name__, ("transforms",), more={"Transform": "hf_stages.transforms.base"})


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
