"""The seam to Nix: its program, evaluation, events, failures."""
