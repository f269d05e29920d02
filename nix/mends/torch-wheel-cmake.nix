/**
  What nixpkgs' source torch does to its CMake files, done to the wheel's: nixpkgs' CUDA is in
  many store paths, which torch's check takes for two installations; a line of torch's sets
  CUDAToolkit_ROOT to one of them, over the list that nixpkgs' setup hook gives; and torch's own copy
  of FindCUDAToolkit hides CMake's.

  Upstream: postPatch of pkgs/development/python-modules/torch/source/default.nix, these three and no
  more that a wheel still holds. The paths are those of the wheel of torch 2.9.1, read there. Nobody
  has seen yet what a build does without the second.
*/
plan: _: prev:
let
  mend = _: pyPrev: {
    torch-bin = pyPrev.torch-bin.overrideAttrs (old: {
      postInstall = old.postInstall or "" + ''
        cmake=$out/${old.passthru.pythonModule.sitePackages}/torch/share/cmake/Caffe2
        substituteInPlace "$cmake/public/cuda.cmake" \
          --replace-fail 'FATAL_ERROR "Found two conflicting CUDA' 'WARNING "Found two conflicting CUDA' \
          --replace-warn 'set(CUDAToolkit_ROOT' '# set(CUDAToolkit_ROOT'
        rm "$cmake/FindCUDAToolkit.cmake"
      '';
    });
  };
in
prev.lib.optionalAttrs (plan.torch.from == "wheel") {
  pythonPackagesExtensions = prev.pythonPackagesExtensions ++ [ mend ];
}
