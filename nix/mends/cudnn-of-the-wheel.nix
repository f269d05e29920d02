/**
  cuDNN 9.10.2: what the wheel of torch 2.9.1 itself requires, so that every variant runs on the cuDNN
  that torch was tested with. It is also the last one with Volta: the set's own (9.13) refuses
  capability 7.0, but only when the derivation is forced, so for sm70 this is a need, for the others a
  choice.

  For x86_64 and for servers of arm64 (sbsa): a Jetson's is a third archive, and plan.nix refuses Jetsons.

  Upstream: cuDNN's support matrix for 9.12; nixpkgs' pkgs/development/cuda-modules/packages/cudnn.nix
  asserts it. The set must have `.override` with `manifests`, as those of nixpkgs have. Move it with
  torch; the first torch that needs a newer cuDNN ends sm70.
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
