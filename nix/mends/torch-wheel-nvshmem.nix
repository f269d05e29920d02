/**
  The wheel of torch 2.9 links libtorch_nvshmem.so to NVSHMEM, which it does not hold, so
  autoPatchelf must find it.

  Upstream: buildInputs of pkgs/development/python-modules/torch/bin, where libnvshmem is missing
  in some revisions. Harmless where it is not.
*/
plan: final: prev:
let
  inherit (prev) lib;
  mend = _: pyPrev: {
    torch-bin = pyPrev.torch-bin.overrideAttrs (old: {
      buildInputs = lib.unique (
        old.buildInputs or [ ]
        ++ lib.optional (final.cudaPackages ? libnvshmem) final.cudaPackages.libnvshmem
      );
    });
  };
in
lib.optionalAttrs (plan.torch.from == "wheel") {
  pythonPackagesExtensions = prev.pythonPackagesExtensions ++ [ mend ];
}
