/**
  One variant: a derivation that leaves `bin/python`, `bin/vllm` and its manifest.

  Arguments are those of `plan`, and

  - `nixpkgs`: the source tree to import; a flake input will do.
  - `overlays`: of your own, on top of the mends.
  - `mends`: leave one out by filtering `lib.mends` by `name`.
  - `check = false`: builds what the closure check refuses, should it be wrong about your nixpkgs.

  The result's `.override` takes the same arguments: `sm90.override { ptx = true; }`. Call it
  before overrideAttrs.

  # Type
  `mkVariant :: { nixpkgs, overlays ? [], mends ? lib.mends, check ? true, … } -> Derivation`
*/
let
  mkVariant =
    {
      nixpkgs,
      overlays ? [ ],
      mends ? import ./mends,
      check ? true,
      ...
    }@arguments:
    let
      plan = import ./plan.nix (
        removeAttrs arguments [
          "nixpkgs"
          "overlays"
          "mends"
          "check"
        ]
      );
      pkgs = import ./package-set.nix {
        inherit
          nixpkgs
          plan
          mends
          overlays
          ;
      };
      inherit (pkgs) lib;

      packaged = import ./packaged.nix { inherit pkgs plan; };
      closure = import ./closure.nix {
        inherit lib;
        inherit (pkgs) cudaPackages;
        package = packaged.vllm;
      };
      sound =
        !check
        || closure.problems == [ ]
        || throw "${plan.name} would not be what it says: ${lib.concatStringsSep "; " closure.problems}";

      proofs = import ./proofs.nix (
        import ./plain.nix {
          inherit nixpkgs;
          inherit (plan) system;
        }
      );

      package = pkgs.callPackage ../pkgs/vllm {
        inherit plan;
        inherit (packaged) vllm versions;
        inherit (closure) modules;
        revision = nixpkgs.rev or null;
        tests = lib.mapAttrs (_: proof: proof variant) proofs;
      };

      # The closure is walked with the derivation, not with its name: listing variants stays quick.
      variant = lib.extendDerivation sound { } package // {
        override = new: mkVariant (arguments // (if builtins.isFunction new then new arguments else new));
      };
    in
    builtins.seq plan.name (if packaged.refusal == null then variant else throw packaged.refusal);
in
mkVariant
