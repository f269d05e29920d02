/**
  One CUDA for the whole set. nixpkgs' default is another 12.x, and some packages (the -bin ones)
  take `cudaPackages_12`: without this the closure mixes two CUDA versions, and evaluates.

  Upstream: none; this is how nixpkgs' manual (CUDA, "Configuring Nixpkgs for CUDA") sets it.
*/
plan: final: _:
let
  version = plan.release.cuda;
  set = "cudaPackages_${builtins.replaceStrings [ "." ] [ "_" ] version}";
  major = "cudaPackages_${builtins.head (builtins.splitVersion version)}";
in
{
  ${major} = final.${set};
  cudaPackages = final.${set};
}
