/**
  One variant: a derivation that leaves `bin/python`, `bin/vllm` and its manifest.

  Arguments are those of `plan`, and

  - `nixpkgs`: the source tree to import; a flake input will do.
  - `overlays`: of your own, on top of the mends.
  - `mends`: leave one out by filtering `lib.mends` by `name`.
  - `check = false`: builds what the closure check refuses, should it be wrong about your nixpkgs.

  The result's `.override` takes the same arguments: `sm90.override { ptx = true; }`, before or after
  an `.overrideAttrs`.

  # Type
  `mkVariant :: { nixpkgs, overlays ? [], mends ? lib.mends, check ? true, … } -> Derivation`
*/
let
  make =
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
      closureOf =
        package:
        let
          closure = import ./closure.nix {
            inherit lib package;
            inherit (pkgs) cudaPackages;
            inherit (plan) capabilities;
          };
        in
        {
          inherit (closure) modules;
          sound =
            !check
            || closure.problems == [ ]
            || throw "${plan.name} would not be what it says: ${lib.concatStringsSep "; " closure.problems}";
        };

      package = pkgs.callPackage ../pkgs/vllm {
        inherit plan closureOf;
        inherit (packaged) vllm versions torchCapabilities;
        revision = nixpkgs.rev or null;
        proofs = import ./proofs.nix (
          import ./plain.nix {
            inherit nixpkgs;
            inherit (plan) system;
          }
        );
      };
    in
    import ./listed.nix {
      inherit plan;
      package = if packaged.refusal == null then package else throw packaged.refusal;
    };

  # `.override` and `.overrideAttrs`, each of which may follow the other.
  overridable =
    make: arguments:
    make arguments
    // {
      override =
        new:
        overridable make (arguments // (if builtins.isFunction new then new arguments else new));
      overrideAttrs = changes: overridable (given: (make given).overrideAttrs changes) arguments;
    };
in
overridable make
