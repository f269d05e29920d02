/**
  The published wheel in place of a source build of torch, for the whole set: hours less.

  It cannot be done in vLLM's overrideAttrs: torchvision, torchaudio, xformers, flashinfer and
  xgrammar bring their own torch, and the build fails on two of them, hours later. The wheel's
  companions and triton go with it. vLLM and its dependencies read five attributes that torch-bin
  lacks. `stdenv` is the treacherous one: without it nothing fails at evaluation and vLLM is
  compiled by the default GCC, which nvcc does not take. `cudaCapabilities` is the set's, not an
  intersection with the wheel's own list, which would be empty for 8.9.

  Upstream: pkgs/development/python-modules/torch/{source,bin}; nobody has published vLLM on
  torch-bin. Delete the five attributes when torch-bin carries them.
*/
plan: final: prev:
let
  inherit (prev) lib;
  inherit (final) cudaPackages;

  # nixpkgs' own wheel, or the one that the plan pins.
  source =
    old:
    if plan.torch.wheel == null then
      old.src
    else
      final.fetchurl {
        inherit (plan.torch.wheel) url hash;
        # "%" cannot be in a store path's name.
        name = lib.replaceStrings [ "%2B" ] [ "+" ] (baseNameOf plan.torch.wheel.url);
      };
  # "…/whl/cu128/torch-2.9.1%2Bcu128-cp312-…" is made for CUDA 12.8, and runs with every CUDA 12.
  madeFor = src: builtins.match ".*(/whl/|%2B|[+])cu([0-9]+)[0-9][/-].*" src.url;
  inherit (plan) release;
  major = builtins.head (builtins.splitVersion release.cuda);
  withCuda =
    src: value:
    let
      wheels = if madeFor src == null then null else lib.last (madeFor src);
    in
    if wheels == null then
      throw "torch-bin is a CPU wheel, by its address: ${src.url}"
    else if wheels != major then
      throw "torch-bin is a wheel for CUDA ${wheels}, and release ${release.name} declares CUDA ${release.cuda}: set torch = \"source\", or torch = { url = …; hash = …; } to a wheel for CUDA ${major} (${src.url})"
    else
      value;

  swap = pyFinal: pyPrev: {
    # torch-bin itself is changed, since torchvision-bin and torchaudio-bin take it by that name.
    torch-bin = pyPrev.torch-bin.overrideAttrs (
      old:
      let
        src = source old;
      in
      {
        inherit src;
        passthru = old.passthru // {
          cudaSupport = withCuda src true;
          rocmSupport = false;
          inherit cudaPackages;
          inherit (cudaPackages.flags) cudaCapabilities;
          stdenv = cudaPackages.backendStdenv;
        };
      }
    );
    torch = pyFinal.torch-bin;
    torchvision = pyFinal.torchvision-bin;
    torchaudio = pyFinal.torchaudio-bin;
    triton = pyFinal.triton-bin;
  };
in
lib.optionalAttrs (plan.torch.from == "wheel") {
  pythonPackagesExtensions = prev.pythonPackagesExtensions ++ [ swap ];
}
