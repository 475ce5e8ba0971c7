"""Scripts that measure: each prints ratios of things that it ran by turns, because a ratio travels and a
second does not. Run from the project's root: `python -m tests.benchmarks.NAME --help`. pytest leaves them alone.
"""
