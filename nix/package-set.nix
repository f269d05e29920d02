/**
  The package set of one variant: nixpkgs with its capabilities, on the release's CUDA, mended.

  # Type
  `packageSet :: { nixpkgs, plan, mends ? lib.mends, overlays ? [ ] } -> Pkgs`
*/
{
  nixpkgs,
  plan,
  mends ? import ./mends,
  overlays ? [ ],
}:
let
  inherit (import ./plain.nix { inherit nixpkgs; inherit (plan) system; }) cli;
in
# Both `config` and `overlays` are given, else an impure evaluation reads the user's own.
import nixpkgs {
  inherit (plan) system;
  config = {
    allowUnfree = true;
    cudaSupport = true;
    cudaCapabilities = plan.capabilities;
    cudaForwardCompat = plan.ptx;
  };
  overlays =
    map (mend: mend plan) mends
    ++ (if plan.slim then [ (import ./slim.nix { inherit plan cli; }) ] else [ ])
    ++ overlays;
}
