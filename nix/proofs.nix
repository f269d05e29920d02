/**
  What proves a built variant: the audit of its device code, and the kernels on a GPU.

  # Type
  `proofs :: { runCommand, cli } -> { audit, gpu :: Variant -> Derivation }`
*/
{ runCommand, cli }:
{
  /** Which images are in every shared library, and whether each container runs on the SM. */
  audit = variant: runCommand "audit-${variant.variant}" { nativeBuildInputs = [ cli ]; } ''
    ${cli}/bin/vllm-variants audit ${variant} --json > "$out"
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
        ${cli}/bin/vllm-variants verify ${variant} --json > "$out"
      '';
}
