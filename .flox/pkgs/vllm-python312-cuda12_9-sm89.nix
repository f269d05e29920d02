{ stdenv, ... }: import ../../nix/flox.nix { name = "vllm-python312-cuda12_9-sm89"; system = stdenv.hostPlatform.system; }
