/**
  cuDNN loads libnvrtc at run time, and at the pin does not know where it is: "Cannot load symbol
  cudnnGetVersion" on an H100.

  Upstream: NixOS/nixpkgs pull request 471394 puts it into cuDNN's runpath. Delete when the pin
  has it; until then a second entry is left out.
*/
plan: _: prev:
let
  inherit (prev) lib;
  set = "cudaPackages_${builtins.replaceStrings [ "." ] [ "_" ] plan.release.cuda}";
in
lib.optionalAttrs (prev ? ${set}) {
  ${set} = prev.${set}.overrideScope (
    cudaFinal: cudaPrev: {
      cudnn = cudaPrev.cudnn.overrideAttrs (old: {
        appendRunpaths = lib.unique (
          old.appendRunpaths or [ ] ++ [ "${lib.getLib cudaFinal.cuda_nvrtc}/lib" ]
        );
      });
    }
  );
}
