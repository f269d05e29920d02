"""GPU import and kernel checks: run by a result's own interpreter, judged by expectations.

`expectations` is what should happen, `running` makes it happen in separate `processes`, `verdicts`
compares the two, `comparison` holds two results against each other, `reports` writes it down.
These modules need the standard library alone, so that `python -m vllm_variants.verify` works on a
machine where nothing is installed.
"""
