/**
  A variant as Flox builds it: the flake's derivation, without the flake. The system is that of
  Flox's scope; nixpkgs and its hash come from flake.lock.

  # Type
  `flox :: { name :: String; system :: String; } -> Derivation`
*/
{ name, system }:
let
  library = import ./.;
in
library.mkVariant {
  inherit system;
  variant = name;
  nixpkgs = import ./nixpkgs.nix (library.inputName library.matrix.default);
}
