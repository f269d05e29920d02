{ stdenv, ... }: import ../../nix/flox.nix { name = "vllm-python312-cuda12_9-sm90"; system = stdenv.hostPlatform.system; }
