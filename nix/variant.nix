/**
  One variant: a derivation that leaves `bin/python`, `bin/vllm` and its manifest.

  Arguments are those of `plan`, and

  - `nixpkgs`: the source tree to import; a flake input will do.
  - `overlays`: of your own, on top of the mends.
  - `mends`: leave one out by filtering `lib.mends` by `name`.

  The result's `.override` takes the same arguments: `sm90.override { ptx = true; }`. Call it
  before overrideAttrs.

  # Type
  `mkVariant :: { nixpkgs, overlays ? [], mends ? lib.mends, … } -> Derivation`
*/
let
  mkVariant =
    {
      nixpkgs,
      overlays ? [ ],
      mends ? import ./mends,
      ...
    }@arguments:
    let
      plan = import ./plan.nix (
        removeAttrs arguments [
          "nixpkgs"
          "overlays"
          "mends"
        ]
      );
      inherit (plan) release;
      pkgs = import ./package-set.nix {
        inherit
          nixpkgs
          plan
          mends
          overlays
          ;
      };
      inherit (pkgs) lib;

      pythonSet = "python${lib.replaceStrings [ "." ] [ "" ] release.python}Packages";
      cudaSet = "cudaPackages_${lib.replaceStrings [ "." ] [ "_" ] release.cuda}";
      python = pkgs.${pythonSet} or (throw "this nixpkgs has no ${pythonSet}: release ${release.name} declares Python ${release.python}");
      found = {
        vllm = python.vllm.version;
        torch = python.torch.version;
      };
      differs = what: declared: found.${what} != declared;
      refusal =
        if !(pkgs ? ${cudaSet}) then
          "this nixpkgs has no ${cudaSet}: release ${release.name} declares CUDA ${release.cuda}"
        else if differs "vllm" release.name then
          "this nixpkgs packages vLLM ${found.vllm}, and release ${release.name} was declared: ask for the release ${found.vllm}, or give the nixpkgs that packages ${release.name} (${release.nixpkgs})"
        else if differs "torch" release.torch then
          "this nixpkgs packages torch ${found.torch}, and release ${release.name} declares ${release.torch}: mend it in variants.toml"
        else
          null;

      package = pkgs.callPackage ../pkgs/vllm {
        inherit plan;
        vllm = python.vllm.override (
          lib.optionalAttrs plan.ptx {
            # cudaForwardCompat reaches nixpkgs' flags, but not vLLM's list of architectures.
            gpuTargets = map (c: if c == lib.last plan.capabilities then "${c}+PTX" else c) plan.capabilities;
          }
        );
        modules = closure.modules;
        revision = nixpkgs.rev or null;
      };
      closure = import ./closure.nix {
        inherit lib;
        inherit (pkgs) cudaPackages;
        package = python.vllm;
      };
      sound =
        closure.problems == [ ]
        || throw "${plan.name} would not be what it says: ${lib.concatStringsSep "; " closure.problems}";
    in
    if refusal != null then
      throw refusal
    else
      # Forced with the derivation, not with its name: listing variants stays quick.
      lib.extendDerivation sound { } package
      // {
        override = new: mkVariant (arguments // (if builtins.isFunction new then new arguments else new));
      };
in
mkVariant
