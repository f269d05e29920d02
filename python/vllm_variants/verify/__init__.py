"""GPU import and kernel checks: run by a result's own interpreter, judged by what its SM must show.

`catalogue` says which checks there are and where each must succeed; `running` runs them, each in its
own process (`check_process`); `judgement` decides how each counts; `comparison` holds two results
against each other; `reports` writes a run down, and `evidence` makes tables of kept runs. `preflight`
looks at the machine first, and `cards` keeps a card to one test. All but these two need the standard
library alone, so that `python -m vllm_variants.verify` works on a machine where nothing is installed.
"""
