/**
  bitsandbytes for the variant's capabilities. It ignores the set's and compiles 19 architectures,
  and from 17 on CUDA 12.9's CCCL breaks (`_CCCL_PP_SPLICE_WITH_IMPL20` is missing).

  Leaving it out of vLLM's dependencies in overrideAttrs is a trap: `requiredPythonModules` was
  computed before, and `withPackages` brings it back.

  Upstream: pkgs/development/python-modules/bitsandbytes/default.nix. Delete when it reads
  cudaCapabilities.
*/
plan: _: prev:
let
  inherit (prev) lib;
  digits = lib.replaceStrings [ "." ] [ "" ];
in
{
  pythonPackagesExtensions = prev.pythonPackagesExtensions ++ [
    (_: pyPrev: {
      bitsandbytes = pyPrev.bitsandbytes.overrideAttrs (old: {
        cmakeFlags = old.cmakeFlags or [ ] ++ [
          "-DCOMPUTE_CAPABILITY=${lib.concatMapStringsSep ";" digits plan.capabilities}"
        ];
      });
    })
  ];
}
