/**
  The flake's outputs, from its inputs. Names and systems come from the matrix.

  # Type
  `outputs :: { ${input} :: Nixpkgs } -> Outputs`
*/
inputs:
let
  inherit (builtins)
    attrNames
    attrValues
    filter
    foldl'
    listToAttrs
    mapAttrs
    replaceStrings
    ;

  library = import ./.;
  inherit (library) matrix names mkVariant;

  systems = attrNames (builtins.groupBy (variant: variant.system) (attrValues matrix.variants));
  forSystems = f: listToAttrs (map (system: { name = system; value = f system; }) systems);

  nixpkgsOf =
    release:
    if release.name == matrix.default.name then
      inputs.nixpkgs
    else
      inputs."nixpkgs-${replaceStrings [ "." ] [ "_" ] release.name}";

  # Every variant of a release, by its short name. One of another system is a refusal.
  variants =
    release: system:
    mapAttrs (
      short: _:
      mkVariant {
        inherit system release;
        nixpkgs = nixpkgsOf release;
        variant = short;
      }
    ) matrix.variants;
  here = system: set: removeAttrs set (
    attrNames (removeAttrs matrix.variants (homed system))
  );
  homed =
    system: filter (short: matrix.variants.${short}.system == system) (attrNames matrix.variants);

  # The same under full names too.
  named =
    release: set:
    foldl' (
      all: short: all // { ${names.full release matrix.variants.${short}} = set.${short}; }
    ) set (attrNames set);

  # Plain packages of the pin, without CUDA: for the command line and the shell.
  pkgs = forSystems (
    system:
    import inputs.nixpkgs {
      inherit system;
      config = { };
      overlays = [ ];
    }
  );
  cli = forSystems (system: pkgs.${system}.callPackage ./cli.nix { });
in
{
  lib = library;

  packages = forSystems (
    system:
    named matrix.default (here system (variants matrix.default system))
    // {
      cli = cli.${system};
      # `nix build` and `nix run` without a name: the command line, which builds nothing by itself.
      default = cli.${system};
    }
  );

  # Not searched by `nix flake check`: every release, and a refusal for a name of another system.
  legacyPackages = forSystems (
    system:
    named matrix.default (variants matrix.default system)
    // {
      releases = mapAttrs (_: release: named release (variants release system)) matrix.releases;
    }
  );
}
