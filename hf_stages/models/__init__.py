"""Models: building and loading them, their structure and weights, and what is captured of a forward pass.

Begin with ``structure`` (a model built anew), ``adapters`` (PEFT) and ``capture`` (hidden states, attention, logits).
"""
