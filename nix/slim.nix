/**
  `slim = true`: the torch wheel and the CUDA libraries of the set keep the images of the variant's
  SM only, as vLLM's own do by being compiled for it: compressed as the release's oldest driver reads
  them, and without the sections that nothing loads, with the defaults of `vllm-variants slim`. Off by
  default until it was seen in a real build.

  Files that nothing opens are the wheels builder's affair: its list knows them by the hashes of
  published wheels, which a package set does not install, or patches.

  The phase is the last one: autoPatchelf and patchelf before it move program headers, and would
  undo what the slimmer laid out. Libraries that nixpkgs compiles for the set's capabilities (NCCL,
  MAGMA) need none.

  # Type
  `slim :: { plan :: Plan; cli :: Derivation; } -> Overlay`
*/
{ plan, cli }:
_: prev:
let
  inherit (prev) lib;
  set = "cudaPackages_${lib.replaceStrings [ "." ] [ "_" ] plan.release.cuda}";
  libraries = [
    "cudnn"
    "libcublas"
    "libcufft"
    "libcurand"
    "libcusolver"
    "libcusparse"
    "libcusparse_lt"
    "libnpp"
  ];
  # What decides the codec; a release of one's own has the default's stack.
  released = lib.optionalString (
    (import ./matrix.nix).releases ? ${plan.release.name}
  ) "--release ${plan.release.name} ";
  devices = lib.concatMapStringsSep " " (capability: "--sm ${capability}") plan.capabilities;

  slimmed =
    package:
    package.overrideAttrs (old: {
      nativeBuildInputs = old.nativeBuildInputs or [ ] ++ [ cli ];
      postPhases = old.postPhases or [ ] ++ [ "slimPhase" ];
      slimPhase = ''
        for output in $(getAllOutputNames); do
          eval "path=\$$output"
          chmod -R u+w "$path"
          vllm-variants slim "$path" ${released}--in-place ${devices}${lib.optionalString plan.ptx " --keep-ptx"}
        done
      '';
    });
in
{
  ${set} = prev.${set}.overrideScope (
    _: cudaPrev:
    lib.mapAttrs (_: slimmed) (lib.filterAttrs (name: _: lib.elem name libraries) cudaPrev)
  );
}
// lib.optionalAttrs (plan.torch.from == "wheel") {
  pythonPackagesExtensions = prev.pythonPackagesExtensions ++ [
    (_: pyPrev: { torch-bin = slimmed pyPrev.torch-bin; })
  ];
}
