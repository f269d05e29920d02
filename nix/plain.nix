/**
  The plain package set of a nixpkgs, and the command line out of it: no CUDA, no mends, so that
  nothing here is rebuilt for a variant.

  # Type
  `plain :: { nixpkgs, system } -> { pkgs, cli }`
*/
{ nixpkgs, system }:
rec {
  pkgs = import nixpkgs {
    inherit system;
    config = { };
    overlays = [ ];
  };
  cli = pkgs.callPackage ./cli.nix { };
}
