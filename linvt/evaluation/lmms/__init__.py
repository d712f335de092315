"""lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval): its environment, its runs, and tasks of ours for it."""

LMMS_EVAL = "0.7.3"
"""The version that all of this was written for and tried with."""
