/**
  What proves a built variant: the audit of its device code, and the kernels on a GPU.

  # Type
  `proofs :: { pkgs, cli } -> { audit, gpu :: Variant -> Derivation }`, its argument as of `plain`
*/
{ pkgs, cli }:
let
  inherit (pkgs) closureInfo runCommand;
in
{
  /** Which images are in every library of the closure, and whether each container runs on the SM. */
  audit =
    variant:
    runCommand "audit-${variant.variant}"
      {
        nativeBuildInputs = [ cli ];
        closure = closureInfo { rootPaths = [ variant ]; };
      }
      ''
        vllm-variants audit ${variant} --closure-from "$closure/store-paths" --json > "$out"
      '';

  /** The GPU checks. Only a builder that says it has the feature `cuda` runs them. */
  gpu =
    variant:
    runCommand "gpu-checks-${variant.variant}"
      {
        nativeBuildInputs = [ cli ];
        requiredSystemFeatures = [ "cuda" ];
      }
      ''
        vllm-variants verify --result ${variant} --json > "$out"
      '';
}
