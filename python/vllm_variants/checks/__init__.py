"""GPU checks: scripts for a result's own interpreter, which print JSON lines.

Nothing here imports the rest of `vllm_variants`, and nothing outside this folder imports these
modules: `run.py` is the only door. They need the standard library, torch and vllm, and Python 3.12.
"""
