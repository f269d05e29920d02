/**
  What a package set holds for a plan, and the sentence that refuses it when that is not what the
  release declares: nixpkgs decides vLLM's version, the matrix only says which one to expect.

  # Type
  ```
  packaged :: { pkgs, plan } -> {
    vllm :: Derivation;
    versions :: { ${name} :: String };
    torchCapabilities :: [Capability] | null, which is: nobody knows;
    refusal :: String | null;
  }
  ```
*/
{ pkgs, plan }:
let
  inherit (pkgs) lib;
  inherit (plan) release;

  pythonSet = "python${lib.replaceStrings [ "." ] [ "" ] release.python}Packages";
  cudaSet = "cudaPackages_${lib.replaceStrings [ "." ] [ "_" ] release.cuda}";
  python = pkgs.${pythonSet};

  capability = import ./capability.nix;

  # What torch has images for, which is not always what was planned: its source takes those of a list
  # of its own, and a wheel holds what PyTorch chose.
  torchCapabilities =
    if plan.torch.from == "source" then
      python.torch.cudaCapabilities or [ ]
    else if plan.torch.wheel == null && !plan.slim then
      capability.ofTorchWheel release.torch
    else
      null;
  withoutTorch = lib.filter (
    c: torchCapabilities != null && !(lib.any (capability.runs c) torchCapabilities)
  ) plan.capabilities;
  comma = lib.concatStringsSep ", ";

  versions = {
    python = python.python.version;
    cuda = pkgs.cudaPackages.cudaMajorMinorVersion;
    cudnn = pkgs.cudaPackages.cudnn.version;
    gcc = pkgs.cudaPackages.backendStdenv.cc.version;
    torch = python.torch.version;
    vllm = python.vllm.version;
  };
in
{
  inherit versions torchCapabilities;

  vllm = python.vllm.override (
    lib.optionalAttrs plan.ptx {
      # cudaForwardCompat reaches nixpkgs' flags, but not vLLM's own list of architectures.
      gpuTargets = lib.init plan.capabilities ++ [ "${lib.last plan.capabilities}+PTX" ];
    }
  );

  refusal =
    if !(pkgs ? ${pythonSet}) then
      "this nixpkgs has no ${pythonSet}, and release ${release.name} declares Python ${release.python}"
    else if !(pkgs ? ${cudaSet}) then
      "this nixpkgs has no ${cudaSet}, and release ${release.name} declares CUDA ${release.cuda}"
    else if versions.cuda != release.cuda then
      "this package set is on CUDA ${versions.cuda}, and release ${release.name} declares ${release.cuda}: keep the mend \"cuda-version\", or set cudaPackages in an overlay"
    else if versions.vllm != release.name then
      "this nixpkgs packages vLLM ${versions.vllm}, and release ${release.name} was asked for: ask for release \"${versions.vllm}\", or give the nixpkgs that packages ${release.name}"
      + lib.optionalString (release.nixpkgs != null) " (${release.nixpkgs})"
    else if versions.torch != release.torch then
      "this nixpkgs packages torch ${versions.torch}, and release ${release.name} declares ${release.torch}: correct variants.toml"
    else if withoutTorch != [ ] then
      "torch ${versions.torch} of this nixpkgs ${
        if torchCapabilities == [ ] then
          "cannot be compiled for ${comma withoutTorch}: its package lists other capabilities"
        else
          "is compiled for ${comma torchCapabilities} only, which does not run on ${comma withoutTorch}"
      }; leave the capability out, or take a wheel: torch = { url = …; hash = …; }, or \"wheel\" where one is known"
    else
      null;
}
