"""The benchmarks' own scoring rules: pure functions, one file a family of rules.

Each follows the source that its docstring names, also where that is odd, but for one thing: an answer that a rule
cannot read is wrong. Some of the originals draw a random letter then, or count an empty answer as right.
"""
