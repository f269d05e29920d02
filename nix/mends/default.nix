/**
  What nixpkgs at the pins needs before a variant evaluates and builds: one file a mend, each with
  its reason and the upstream reference, each an overlay after a plan. docs/nixpkgs-mends.md is
  their list for people. The order matters: an overridden CUDA scope has no `.override` any more.

  # Type
  `mends :: [ { name :: String; __functor :: Self -> Plan -> Overlay; } ]`
*/
map
  (name: {
    inherit name;
    __functor = _: import (./. + "/${name}.nix");
  })
  [
    "cuda-version"
    "cudnn-of-the-wheel"
    "cudnn-nvrtc"
    "torch-wheel"
    "torch-wheel-cmake"
    "torch-wheel-nvshmem"
    "bitsandbytes"
  ]
