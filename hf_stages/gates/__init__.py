"""Gates: from the stage's history, nothing, an alert, the end of the stage, a lower rate or a way back."""

from hf_stages.gates._gate import Decision as Decision
from hf_stages.gates._gate import Gate as Gate
from hf_stages.gates._gate import History as History
from hf_stages.gates.above import Above as Above
from hf_stages.gates.below import Below as Below
from hf_stages.gates.budget import Budget as Budget
from hf_stages.gates.expect import Expect as Expect
from hf_stages.gates.forgetting import Forgetting as Forgetting
from hf_stages.gates.plateau import Plateau as Plateau

__all__ = ["Above", "Below", "Budget", "Decision", "Expect", "Forgetting", "Gate", "History", "Plateau"]
