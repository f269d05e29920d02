/**
  cuDNN 9.10.2: what the wheel of torch 2.9.1 itself requires, and the last one with Volta. The
  set's own (9.13) refuses capability 7.0, but only when the derivation is forced.

  Upstream: cuDNN's support matrix for 9.12; nixpkgs' pkgs/development/cuda-modules/packages/cudnn.nix
  asserts it. Delete when torch moves to a newer cuDNN, and sm70 with it.
*/
plan: _: prev:
let
  version = plan.release.cuda;
  set = "cudaPackages_${builtins.replaceStrings [ "." ] [ "_" ] version}";
  archive = platform: sha256: {
    relative_path = "cudnn/${platform}/cudnn-${platform}-9.10.2.21_cuda12-archive.tar.xz";
    inherit sha256;
  };
  cudnn = {
    version = "9.10.2.21";
    license = "cudnn";
    cuda_variant = [ "12" ];
    linux-x86_64.cuda12 =
      archive "linux-x86_64" "d0defcbc4c6dad711ff4cb66d254036a300c9071b07c7b64199aacab534313c1";
    linux-sbsa.cuda12 =
      archive "linux-sbsa" "4d57dceba3be27a68b078ce8630525bf40ab7f1b546eb45d0b363c3eeb55f8fa";
  };
in
# CUDA 13 has a cuDNN of its own.
prev.lib.optionalAttrs (prev ? ${set} && prev.lib.versionOlder version "13") {
  ${set} = prev.${set}.override (old: {
    manifests = old.manifests // {
      cudnn = {
        inherit cudnn;
      };
    };
  });
}
