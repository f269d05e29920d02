/**
  torch wheels with CUDA for systems where nixpkgs' torch-bin is a CPU wheel:
  torch version -> system -> { url, hash } of a cp312 wheel.

  Kept apart from variants.toml because it is a choice of how to build, not what a release is.
  None is known yet. Until one stands here, arm64 variants build torch from source, for their one
  capability. To pin one, find it in PyTorch's own index of wheels, in
  the folder of a CUDA version (`whl/cu129/torch`), run `nix store prefetch-file URL`, and write

      "2.9.1".aarch64-linux = { url = "…/cu129/torch-2.9.1%2Bcu129-cp312-…_aarch64.whl"; hash = "sha256-…"; };
*/
{ }
