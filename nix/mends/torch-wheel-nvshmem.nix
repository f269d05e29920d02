/**
  The wheel of torch 2.9 links libtorch_nvshmem.so to NVSHMEM, which it does not hold, so
  autoPatchelf must find it.

  Its price: nixpkgs compiles libnvshmem from source, for the set's SM, with tests and examples, and
  on top of MPI, UCX, libfabric, PMIx, gdrcopy and rdma-core, of which UCX and MPI are compiled with
  CUDA. Its hash moves with the SM, so a cache that was filled for other capabilities does not have it,
  and every variant that takes the wheel compiles its own. Without it the wheel cannot be patched.

  Upstream: buildInputs of pkgs/development/python-modules/torch/bin, where libnvshmem is missing.
  Delete when it is not; until then a second entry is left out.
*/
plan: final: prev:
let
  inherit (prev) lib;
  inherit (plan) release;
  libnvshmem =
    final.cudaPackages.libnvshmem
      or (throw "CUDA ${release.cuda} of this nixpkgs has no libnvshmem, which the wheel of torch ${release.torch} links: set torch = \"source\", or leave out the mend \"torch-wheel-nvshmem\" if your torch-bin finds it elsewhere");
  mend = _: pyPrev: {
    torch-bin = pyPrev.torch-bin.overrideAttrs (old: {
      buildInputs = lib.unique (old.buildInputs or [ ] ++ [ libnvshmem ]);
    });
  };
in
lib.optionalAttrs (plan.torch.from == "wheel") {
  pythonPackagesExtensions = prev.pythonPackagesExtensions ++ [ mend ];
}
