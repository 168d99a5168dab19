"""Random curves, losses and stages from the parts that exist."""

from hypothesis import strategies as st

from hf_stages import Recipe, Stage
from hf_stages.core.curves import WSD, Const, Cosine, Join, Linear, Step
from hf_stages.core.duration import Duration
from hf_stages.data.source import Source
from hf_stages.evaluation.metrics import Metrics
from hf_stages.gates import Above, Below, Budget, Expect, Plateau
from hf_stages.losses import TaskLoss
from hf_stages.losses.base import Scaled, Sum
from hf_stages.models.model_source import ModelSource
from hf_stages.schedules import Fresh, Restarts, Resume, Rewarm

numbers = st.one_of(st.integers(-1000, 1000), st.floats(-1e6, 1e6))
shares = st.floats(0, 0.5)
plain_curves = st.one_of(
    st.builds(Const, numbers),
    st.builds(Linear, numbers, numbers),
    st.builds(Cosine, numbers, numbers),
    st.builds(WSD, shares, shares, numbers, numbers, numbers),
    st.builds(lambda a, b: Step(((0, a), (0.5, b))), numbers, numbers),
)
curves = plain_curves | st.builds(lambda a, b, u: Join((a, b), (u,)), plain_curves, plain_curves, st.floats(0.1, 0.9))

amounts = st.integers(1, 10**9) | st.floats(0.001, 1e12)
durations = st.builds(Duration, amounts, st.sampled_from(["steps", "epochs", "tokens"]))
texts = st.text(max_size=8) | st.sampled_from(
    ["5e-5", "\x85", "a\u2028b", "\ufeff", "a\n", "on", "no", "1:30", "2024-01-01", "0x10", "~", "<<", "1_0", "use"]
)

leaves = st.builds(TaskLoss, st.sampled_from([None, True, False]))
losses = st.recursive(
    leaves,
    lambda inner: (
        st.builds(Scaled, curves | numbers, inner)
        | st.builds(lambda parts: Sum(tuple(parts)), st.lists(inner, min_size=1, max_size=3))
    ),
    max_leaves=5,
)
gates = st.one_of(
    st.builds(Above, texts, numbers),
    st.builds(Below, texts, numbers),
    st.builds(Budget, durations.filter(lambda d: d.unit != "epochs")),
    st.builds(Expect, texts, st.floats(max_value=0, allow_nan=False), st.just(1.5), st.sampled_from(["stop", "warn"])),
    st.builds(Plateau, texts, st.integers(1, 9)),
)
carry = st.sampled_from(["reset", "carry"])
warmups = st.one_of(st.integers(0, 100), st.floats(0, 0.9), st.just("10 steps"), st.just(Duration(6, "percent")))
shapes = curves | st.sampled_from(["linear", "cosine", "Linear(1, 0)"])
schedules = st.one_of(
    st.builds(Fresh, st.none() | st.floats(1e-9, 1), st.none() | warmups, st.none() | shapes, carry),
    st.builds(Resume, carry),
    st.builds(Rewarm, st.floats(1e-9, 1), warmups, shapes, carry),
    st.builds(Restarts, st.integers(1, 9) | st.lists(st.floats(0.1, 9), min_size=1), st.none() | st.floats(1e-9, 1)),
)
plain_args = st.dictionaries(
    texts, st.none() | st.booleans() | numbers | texts | st.lists(numbers, max_size=2), max_size=3
)


@st.composite
def recipes(draw):
    names = draw(st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True), min_size=1, max_size=3))
    names = list({name.lower(): name for name in names}.values())
    stages = []
    for index, name in enumerate(names):
        stages.append(
            Stage(
                name,
                draw(durations),
                loss=draw(st.none() | losses | st.just({"code": TaskLoss(), "prose": 0.5 * TaskLoss()})),
                schedule=draw(st.none() | schedules),
                gates=draw(st.lists(gates, max_size=2)),
                args=draw(plain_args),
                parents=draw(st.sampled_from([None, (), *names[:index]])),
                train_dataset=draw(st.sampled_from([None, "code", Source("folder", text="a")])),
                eval_dataset=draw(st.sampled_from([None, "code", {"a": "code", "b": Source("x")}])),
                compute_metrics=draw(st.sampled_from([None, Metrics(("f1",)), Metrics(("accuracy",), shift=True)])),
                teacher=draw(
                    st.sampled_from([None, "folder", ModelSource("x"), *(f"stage:{n}" for n in names[:index])])
                ),
            )
        )
    model = ModelSource(config={"model_type": "llama", "hidden_size": 64, "list": [1, [2]]}, dtype="bfloat16")
    source = Source("json", data_files=("a.jsonl", "b.jsonl"), text=("a", "b"), label="y", limit=5, rename={"q": "a"})
    return Recipe(
        stages,
        model=draw(st.sampled_from([None, "bert", model])),
        sources=draw(st.sampled_from([{}, {"code": source}])),
        args=draw(plain_args),
        tokenizer=draw(st.none() | st.just("bert")),
    )
