{ stdenv, ... }: import ../../nix/flox.nix { name = "vllm-python312-cuda12_9-sm75"; system = stdenv.hostPlatform.system; }
