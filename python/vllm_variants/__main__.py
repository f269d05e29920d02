"""`python -m vllm_variants`: the command line without an installed script."""

from vllm_variants.cli import main

if __name__ == "__main__":
    main()
