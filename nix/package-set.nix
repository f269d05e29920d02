/**
  The package set of one variant: nixpkgs with its capabilities, on the release's CUDA, mended.

  # Type
  `packageSet :: { nixpkgs, plan, mends, overlays } -> Pkgs`
*/
{
  nixpkgs,
  plan,
  mends,
  overlays,
}:
# Both `config` and `overlays` are given, else an impure evaluation reads the user's own.
import nixpkgs {
  inherit (plan) system;
  config = {
    allowUnfree = true;
    cudaSupport = true;
    cudaCapabilities = plan.capabilities;
    cudaForwardCompat = plan.ptx;
  };
  overlays = map (mend: mend plan) mends ++ overlays;
}
