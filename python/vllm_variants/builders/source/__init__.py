"""The builders that compile vLLM from source: Nix, nix-fast-build, Flox."""
