"""From a recipe to a trainer: tokenizer, datasets and args first, weights last, so that mistakes cost no time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache, wraps
from typing import Any

from torch.utils.data import ConcatDataset
from transformers import AutoTokenizer, TrainingArguments, set_seed
from transformers.utils import logging

from hf_stages.core.did_you_mean import did_you_mean
from hf_stages.core.hub_names import explain_hub_lookup
from hf_stages.core.origins import Origin
from hf_stages.core.placed_errors import place_errors
from hf_stages.core.references import (
    look_up_all,
    named_sources,
    named_teachers,
    place_of,
    source_names_in,
    teaching_stage,
    unknown_sources,
)
from hf_stages.core.stage import Recipe, Stage, own_or_shared
from hf_stages.data.at_depths import AtDepths
from hf_stages.data.collators.base import build_collator
from hf_stages.data.collators.collator import Collator
from hf_stages.data.curricula.base import Curriculum
from hf_stages.data.source import Source
from hf_stages.losses.objective.stage_losses import wants_teacher
from hf_stages.models.model_source import ModelSource
from hf_stages.planning.args_values import check_ranges, check_types
from hf_stages.planning.kept_plan import KeptPlan
from hf_stages.planning.measure_data import plan_for
from hf_stages.planning.model_shapes import build_skeletons
from hf_stages.planning.plan import Plan
from hf_stages.planning.resolved import resolve
from hf_stages.planning.vocabulary import check_vocabulary
from hf_stages.recipes.parts_by_name import with_parts
from hf_stages.reports.text import dataset_label, part
from hf_stages.teachers.declared import CachedTeacher, Teacher
from hf_stages.teachers.live import BASE
from hf_stages.training.checked_plan import check_plan

logger = logging.get_logger(__name__)


def _locate_errors(work: Callable[..., Any]) -> Callable[..., Any]:
    """Let errors of a function name the line of the recipe's text."""

    @wraps(work)
    def located(recipe: Any, *args: Any, **options: Any) -> Any:
        with recipe.origin.locate_errors() if recipe.origin is not None else nullcontext():
            return work(recipe, *args, **options)

    return located


@dataclass(frozen=True)
class Prepared:
    """A recipe whose data is loaded and whose args are checked. No weight is read before ``trainer()``."""

    recipe: Recipe
    """The recipe with its sources loaded. Stages still name them, so that what a run records stays readable."""
    args: TrainingArguments
    tokenizer: Any
    """The tokenizer, which has a padding token; None where the recipe names none."""
    data: Mapping[str, str]
    """What each stage's training data is called, for the plan's table."""
    trust_remote_code: bool = False
    origin: Origin | None = None
    """The text that the recipe was read from."""
    _plans: list[KeptPlan] = field(default_factory=list, init=False, repr=False, compare=False)
    """The plan, once it was made."""

    @_locate_errors
    def plan(self) -> Plan:
        """Return the recipe in absolute numbers. All that the trainer would refuse is found here, in configs alone."""
        if (plan := self._kept_plan()) is None:
            plan = self._planned()
            self._plans[:] = [KeptPlan.of(plan, self.recipe, self.args, self.tokenizer)]
        return plan

    def _kept_plan(self) -> Plan | None:
        """Return the plan that was made before, unless something that it was made from has changed."""
        holds = [kept.plan for kept in self._plans if kept.holds_for(self.recipe, self.args, self.tokenizer)]
        return holds[0] if holds else None

    def _planned(self) -> Plan:
        own = [replace(stage, teacher=self._source(stage.teacher)) for stage in self.recipe.stages]
        plan = plan_for(replace(self.recipe, stages=own, teacher=self._source(self.recipe.teacher)), self.args)
        known = {repr(stage.teacher): stage.teacher for stage in plan.resolved}

        @lru_cache
        def read(key: str) -> Any:
            return known[key].skeleton(trust_remote_code=self.trust_remote_code)

        models = build_skeletons(self.recipe, self.skeleton())
        check_vocabulary(self.recipe, self.tokenizer, models)
        return check_plan(
            plan,
            self.args,
            models,
            self.tokenizer,
            structure=lambda teacher: read(repr(teacher)) if isinstance(teacher, ModelSource) else teacher,
        )

    @_locate_errors
    def skeleton(self) -> Any:
        """Return the initial model on the meta device: its config is read, its weights are not."""
        return _call_loader("model", self._model().skeleton, trust_remote_code=self.trust_remote_code)

    def fresh_model(self) -> Any:
        """Return the initial model with random weights on the args' device, to time it."""
        skeleton = self.skeleton()
        return type(skeleton)._from_config(skeleton.config, dtype=skeleton.dtype).to(self.args.device)

    @_locate_errors
    def trainer(self) -> Any:
        """Load the weights and make the ``StagedTrainer``."""
        from hf_stages.training.trainer import StagedTrainer

        set_seed(self.args.seed)  # a model from a config alone draws its weights here
        loaded: dict[str, Any] = {}
        model = self._load(self._model(), {}, "model")
        recipe = self.recipe
        stages = [
            replace(
                stage,
                teacher=self._load(stage.teacher, loaded, f"stage {stage.name!r}: teacher"),
                data_collator=self._collator(stage.data_collator, model, f"stage {stage.name!r}: "),
            )
            for stage in recipe.stages
        ]
        trainer = StagedTrainer(
            model,
            self.args,
            recipe=replace(recipe, stages=stages),
            teacher=self._load(recipe.teacher, loaded, "teacher"),
            train_dataset=recipe.train_dataset,
            eval_dataset=recipe.eval_dataset,
            data_collator=self._collator(recipe.data_collator, model),
            compute_metrics=recipe.compute_metrics,
            processing_class=self.tokenizer,
        )
        trainer.trust_remote_code = self.trust_remote_code
        if (plan := self._kept_plan()) is not None:
            own = plan.with_recipe(trainer.recipe)
            trainer._staged_plan_at_hand = KeptPlan.of(own, trainer.recipe, trainer.args, trainer.processing_class)
            self._plans.clear()  # its run changes how the plan's data is drawn; another trainer plans for itself
        return trainer

    @_locate_errors
    def cache_teacher(self, folder: str, **options: Any) -> CachedTeacher:
        """Run the one teacher of all stages over the data that they learn from it with; see ``Teacher.cache``."""
        declared: list[Any] = []
        datasets: list[Any] = []
        for stage in resolve(self.recipe):
            if wants_teacher(stage.stage):
                declared.append(stage.teacher)
                datasets += stage.sources
        teachers = {repr(teacher): teacher for teacher in declared}
        if len(teachers) != 1:
            raise ValueError(f"teacher: expected one that some stage's loss uses, got {', '.join(teachers) or 'none'}")
        teacher = self._load(declared[0], {}, "teacher")
        if teacher is None or isinstance(teacher, str | CachedTeacher):
            raise ValueError(f"teacher: expected {{path: ...}} or {{use: Teacher, ...}}, got {declared[0]!r}")
        apart = list({id(dataset): dataset for dataset in datasets}.values())
        dataset = apart[0] if len(apart) == 1 else ConcatDataset(apart)
        teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher)
        given = {"collator": self.collator(), "tokenizer": self.tokenizer, **options}
        return _call_loader("teacher", teacher.cache, dataset, folder, **given)

    def collator(self) -> Any:
        """Return the recipe's own collator, made without a model; None where Trainer chooses one."""
        return build_collator(self._collator(self.recipe.data_collator, None), self.tokenizer, None)

    def _model(self) -> ModelSource:
        return _model_source(self.recipe.model)

    def _load(self, source: Any, loaded: dict[str, Any], where: str) -> Any:
        """Load a model that is given by name, the same name once. The trainer finds ``stage:<name>`` itself."""
        source = self._source(source)
        if isinstance(source, Teacher) and source.auto_class is None and isinstance(source.model, str):
            return replace(source, auto_class=self._model().auto_class)  # a stage loads it when it begins
        if not isinstance(source, ModelSource):
            return source
        key = repr(source)
        if key not in loaded:
            loaded[key] = _call_loader(where, source.load, trust_remote_code=self.trust_remote_code)
        return loaded[key]

    def _source(self, teacher: Any) -> Any:
        """Make of a path a model's source of the student's kind. The trainer finds ``base`` and ``stage:<name>``."""
        if not isinstance(teacher, str) or teacher == BASE or teaching_stage(teacher) is not None:
            return teacher
        return ModelSource(path=teacher, auto_class=self._model().auto_class)

    def _collator(self, collator: Any, model: Any, where: str = "") -> Any:
        if not isinstance(collator, Collator):
            return collator  # one of ours meets its tokenizer and model when a stage begins
        with place_errors(where.removesuffix(": "), TypeError, ValueError, drop=where):
            return collator.build(self.tokenizer, model)


@_locate_errors
def prepare(recipe: Recipe, *, trust_remote_code: bool = False, output_dir: str | None = None) -> Prepared:
    """Load what a plan needs: tokenizer, the datasets that are used, TrainingArguments."""
    origin, recipe = recipe.origin, with_parts(recipe)
    args = training_arguments(recipe.args, output_dir=output_dir)
    _model_source(recipe.model)
    _check_names(recipe)
    tokenizer = _tokenizer(recipe, trust_remote_code)

    def load(source: Any, where: str) -> Any:
        if isinstance(source, Mapping):
            return {key: load(value, f"{where}.{key}") for key, value in source.items()}
        if isinstance(source, Curriculum):
            return source.map_datasets(lambda held: load(held, where))
        if isinstance(source, AtDepths):
            return source.around(load(source.dataset, where))
        if not isinstance(source, Source):
            return source
        return _call_loader(where, source.load, tokenizer, trust_remote_code=trust_remote_code)

    used = {name for path, name in named_sources(recipe) if path[0] != "sources"}
    while (deeper := {n for name in used for n in source_names_in(recipe.sources[name])}) - used:
        used |= deeper
    sources = {n: load(s, f"sources.{n}") if n in used else s for n, s in recipe.sources.items()}

    def with_data(holder: Any, where: str) -> Any:
        keys = ("train_dataset", "eval_dataset")
        return replace(holder, **{key: load(getattr(holder, key), f"{where}{key}") for key in keys})

    shared = {key: look_up_all(getattr(recipe, key), sources, key) for key in ("train_dataset", "eval_dataset")}
    loaded = with_data(replace(recipe, sources=sources, **shared), "")
    stages = [with_data(stage, f"stage {stage.name!r}: ") for stage in recipe.stages]
    data = {stage.name: _data_label(recipe, stage) for stage in recipe.stages}
    return Prepared(replace(loaded, stages=stages), args, tokenizer, data, trust_remote_code, origin)


def build_trainer(recipe: Recipe, *, trust_remote_code: bool = False, output_dir: str | None = None) -> Any:
    """Return the ``StagedTrainer`` that a recipe describes, its data and weights loaded.

    ``output_dir`` takes the place of the recipe's ``args.output_dir``; ``trust_remote_code`` lets code of datasets and
    models on the Hub run.
    """
    return prepare(recipe, trust_remote_code=trust_remote_code, output_dir=output_dir).trainer()


def training_arguments(given: Mapping[str, Any], *, output_dir: str | None = None) -> TrainingArguments:
    """Make TrainingArguments of a recipe's ``args``. Unknown fields and a missing ``output_dir`` are errors."""
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    for key in given:
        if key not in known:
            raise ValueError(f"args.{key}: TrainingArguments has no {key!r}; {did_you_mean(key, known)}")
    check_types(given, "args")
    check_ranges(given, "args")
    values = {**given, **({"output_dir": output_dir} if output_dir is not None else {})}
    if not values.get("output_dir"):
        raise ValueError("args: output_dir: missing; write args: {output_dir: out} in the recipe, or give --output-dir")
    with place_errors("args", ValueError, TypeError, ImportError):
        return TrainingArguments(**values)


def _model_source(model: Any) -> ModelSource:
    if isinstance(model, ModelSource):
        return model
    if isinstance(model, str):
        return ModelSource(path=model)
    found = "nothing" if model is None else type(model).__name__
    raise ValueError(
        f"model: expected {{path: ...}} or {{config: {{...}}}}, got {found}; a recipe's run begins with a model"
    )


def _check_names(recipe: Recipe) -> None:
    """Refuse names of stages and sources that lead nowhere, before anything is loaded."""
    names = [stage.name for stage in recipe.stages]
    for path, name, _ in named_teachers(recipe):
        if name not in names:
            hint = did_you_mean(name, names, there_are="there are")
            raise ValueError(f"{place_of(recipe, path)}: no stage is called {name!r}; {hint}")
    for path, problem in unknown_sources(recipe):
        raise ValueError(f"{place_of(recipe, path)}: {problem}")


def _tokenizer(recipe: Recipe, trust_remote_code: bool) -> Any:
    """Load the tokenizer. One without a padding token (GPT-2's, Llama's) gets one, since batches are padded."""
    if not isinstance(recipe.tokenizer, str):
        return recipe.tokenizer
    load = explain_hub_lookup(recipe.tokenizer)(AutoTokenizer.from_pretrained)
    tokenizer = _call_loader("tokenizer", load, recipe.tokenizer, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        # The unknown token where there is one: padding is masked from labels, and the end should be learned.
        tokenizer.pad_token = tokenizer.unk_token if tokenizer.unk_token is not None else tokenizer.eos_token
        logger.warning(f"tokenizer: {recipe.tokenizer!r} has no padding token; {tokenizer.pad_token!r} serves as one")
    return tokenizer


def _data_label(recipe: Recipe, stage: Stage) -> str:
    dataset = own_or_shared(stage, "train_dataset", recipe)
    return (
        dataset.path
        if isinstance(dataset, Source)
        else part(dataset)
        if isinstance(dataset, Curriculum)
        else dataset_label(dataset)
    )


def _call_loader(where: str, load: Any, *args: Any, **options: Any) -> Any:
    """Call a loader whose errors get the place in the recipe in front."""
    with place_errors(where, ValueError, OSError, keys=("config", "overrides")):
        return load(*args, **options)
