"""A narrower model: some of the attention heads and feed-forward neurons of every block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_stages.core.placed_errors import place_errors
from hf_stages.layers.blocks import stack_of, stacks_of
from hf_stages.transforms import _width_choice as choice
from hf_stages.transforms import _width_config as configs
from hf_stages.transforms import _width_parts as parts
from hf_stages.transforms._peft import refuse_adapters
from hf_stages.transforms._recurrence import refuse_recurrence
from hf_stages.transforms._width_cuts import Cut, cut_attention, cut_neurons, refuse_shared, shapes_after
from hf_stages.transforms.base import Transform

_IMPORTANCE = ("magnitude", "first")


@dataclass(frozen=True)
class ReduceWidth(Transform):
    """Every block keeps a fraction of its attention heads and feed-forward neurons; the hidden size stays.

    DynaBERT makes a narrow student in this way (https://arxiv.org/abs/2004.04037), and BinaryBERT makes a model of half
    the width ternary before it splits the weights (https://arxiv.org/abs/2012.15701). Numbers are rounded to the
    nearest, halves upwards, at least one. Under grouped-query attention whole groups are removed, or equally many
    queries of each group, whichever comes nearer.

    ``importance="magnitude"`` keeps what has the largest weights, measured as a product of norms: for a neuron
    |input row| * |output column| (times the gate's row), for a head |Q| |K| |V| |O| over its own rows and columns. A
    product does not change where one factor grows and another shrinks by as much, and neither does the function. Biases
    do not count. No data is seen: the result is a start for training, not a finished model. ``"first"`` keeps the first
    ones, for models whose heads and neurons are sorted already, as DynaBERT's are.

    The config gets the new numbers, ``head_dim`` among them. Where the architecture reads it (Llama, Qwen, ViT; T5 by
    ``d_kv``), ``from_pretrained`` loads the saved folder. BERT and GPT-2 compute the width of a head as hidden_size /
    num_attention_heads: with fewer heads, stock ``from_pretrained`` refuses the folder by its shapes, and
    ``StagedTrainer.from_stage`` loads it. Blocks that share weights, hold experts, or keep heads in another layout are
    refused.

    >>> ReduceWidth(0.5)
    ReduceWidth(width=0.5, heads=None, ffn=None, importance='magnitude', stack=None)
    """

    width: float | None = None
    """The fraction of heads and neurons that stays, such as 0.5."""
    heads: float | None = None
    """The fraction of heads, instead of ``width``. Without both, all heads stay."""
    ffn: float | None = None
    """The fraction of neurons, instead of ``width``."""
    importance: str = "magnitude"
    """``magnitude`` keeps those with the largest weights, ``first`` the first ones."""
    stack: str | None = None
    """Which stack, where a model has several: ``"encoder"`` or ``"decoder"``. None: all of them."""

    def __post_init__(self) -> None:
        for key in ("width", "heads", "ffn"):
            value = getattr(self, key)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value <= 1):
                raise ValueError(
                    f"ReduceWidth: {key}: expected a fraction above 0 and at most 1, such as 0.5, got {value!r}"
                )
        if self.width is None and self.heads is None and self.ffn is None:
            raise ValueError("ReduceWidth: expected width= (of both), heads= or ffn=, got none; for example width=0.5")
        if self.importance not in _IMPORTANCE:
            raise ValueError(f"ReduceWidth: importance: expected one of {_IMPORTANCE}, got {self.importance!r}")

    @property
    def keeps_function(self) -> bool:  # type: ignore[override]
        return self._fractions() == (1.0, 1.0)

    def __call__(self, model: Any) -> Any:
        refuse_adapters(model, where="ReduceWidth")
        refuse_recurrence(model, where="ReduceWidth")
        if not isinstance(model, PreTrainedModel):
            raise ValueError(f"ReduceWidth: expected a transformers model, got a {type(model).__name__}")
        kind = type(model).__name__
        with place_errors(f"ReduceWidth: {kind}", drop=f"{kind}: "):
            _refuse_quantized(model)
            self._reduce(model)
        return model

    def _fractions(self) -> tuple[float, float]:
        heads, ffn = (self.width if own is None else own for own in (self.heads, self.ffn))
        return 1.0 if heads is None else float(heads), 1.0 if ffn is None else float(ffn)

    def _reduce(self, model: Any) -> None:
        """Reduce the model; nothing is changed before all is known to fit."""
        stacks = dict(stacks_of(model).values())
        chosen = stacks if self.stack is None and len(stacks) > 1 else dict([stack_of(model, self.stack)])
        changes, cuts, cores = [], dict[str, Cut](), set[str]()
        for path, blocks in chosen.items():
            change, own, places = self._plan_stack(model, path, blocks)
            changes.append(change)
            cuts.update(own)
            cores.update(places)
        changes = [change for change in changes if change.old != change.new]
        if not changes:
            return
        if (
            other := configs.stack_with_same_numbers(model, changes, [path for path in stacks if path not in chosen])
        ) is not None:
            raise ValueError(
                f"the config has one number for {changes[0].path} and {other}: leave stack={self.stack!r} out, so that "
                "both are reduced"
            )
        refuse_shared(model, list(cuts))
        new = configs.build_skeleton(model, changes, shapes_after(model, cuts), cuts.keys(), cores)
        attributes = configs.changed_attributes(model, new, changes, cuts.keys(), cores)
        configs.update_configs(model, changes)
        for name, cut in cuts.items():
            cut.apply(model.get_submodule(name))
        for name, key, value in attributes:
            setattr(model.get_submodule(name), key, value)

    def _plan_stack(
        self, model: Any, path: str, blocks: nn.ModuleList
    ) -> tuple[configs.WidthChange, dict[str, Cut], set[str]]:
        """Return one stack's widths before and after, its cuts, and the names of its attentions."""
        named = [(f"{path}.{index}", block) for index, block in enumerate(blocks)]
        of_heads, of_neurons = self._fractions()
        old = new = configs.widths_in_config(model, path)
        cuts: dict[str, Cut] = {}
        cores: set[str] = set()
        if of_heads < 1:
            kept = choice.count_heads(old.heads, old.groups, of_heads)
            new = replace(new, heads=kept[0], groups=kept[1])
            found = [one for name, block in named for one in parts.find_attentions(name, block, old)]
            cores = {one.core for one in found}
            for together in _with_equal_heads(found):
                chosen = choice.choose_heads(model, together, old.size, kept, self.importance)
                for one in together:
                    cuts.update(cut_attention(one, old.size, *chosen))
        if of_neurons < 1:
            feeds = [one for name, block in named for one in parts.find_feed_forwards(name, block)]
            numbers = sorted({parts.width_of(model, one) for one in feeds})
            if len(numbers) > 1:
                raise ValueError(
                    f"{path}: its blocks have {numbers} neurons: expected as many in each; leave them: ffn=1.0"
                )
            kept_neurons = choice.count_neurons(numbers[0], of_neurons)
            old, new = replace(old, neurons=numbers[0]), replace(new, neurons=kept_neurons)
            for feed in feeds:
                cuts.update(cut_neurons(feed, choice.choose_neurons(model, feed, kept_neurons, self.importance)))
        return configs.WidthChange(path, old, new), cuts, cores


def _with_equal_heads(found: Sequence[parts.Attention]) -> list[list[parts.Attention]]:
    """Group attentions that must keep the same heads: all of T5's blocks use the position biases of the first."""
    places: dict[str, list[parts.Attention]] = {}
    for one in found:
        places.setdefault(one.place, []).append(one)
    return [
        group
        for ones in places.values()
        for group in ([ones] if 0 < sum(one.bias is not None for one in ones) < len(ones) else [[one] for one in ones])
    ]


def _refuse_quantized(model: Any) -> None:
    """Refuse models with latent weights of quantized layers, or with weights that bitsandbytes packed."""
    latent = next((name for name, _ in model.named_parameters() if ".weight_latent" in f".{name}"), None)
    if latent is not None:
        raise ValueError(
            f"{latent} belongs to a quantized layer: reduce the width before quantizing, in an earlier transform"
        )
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False):
        raise ValueError("its weights are quantized: expected full ones; load it without quantization_config")
