/**
  The library: pure functions over `variants.toml`. No function here needs a nixpkgs except
  `mkVariant`, which is given one.
*/
{
  matrix = import ./matrix.nix;
  capability = import ./capability.nix;
  names = import ./names.nix;
  plan = import ./plan.nix;
  mends = import ./mends;
  packageSet = import ./package-set.nix;
  closure = import ./closure.nix;
  mkVariant = import ./variant.nix;
}
