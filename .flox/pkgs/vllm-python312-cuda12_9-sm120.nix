{ stdenv, ... }: import ../../nix/flox.nix { name = "vllm-python312-cuda12_9-sm120"; system = stdenv.hostPlatform.system; }
