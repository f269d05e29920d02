/**
  Compute capabilities: `"9.0"`, the SM that it names, and which CUDA and which torch wheel know
  it. Pure. The Python side's twin is `python/vllm_variants/model/capability.py`.
*/
let
  inherit (builtins)
    all
    any
    attrNames
    compareVersions
    elem
    elemAt
    filter
    head
    match
    splitVersion
    ;

  # Capability -> the first CUDA version that compiles for it, and the last (null: still does).
  # From the release notes and `nvcc --help` of each CUDA. nixpkgs has a table of its own, in
  # pkgs/development/cuda-modules/_cuda/db/bootstrap/cuda.nix, which for 7.2 ends with JetPack's last
  # CUDA (12.2) and for 10.0 begins with 12.7.
  cudaRange = {
    "5.0" = { from = "6.5"; until = "12.9"; };
    "5.2" = { from = "6.5"; until = "12.9"; };
    "6.0" = { from = "8.0"; until = "12.9"; };
    "6.1" = { from = "8.0"; until = "12.9"; };
    "7.0" = { from = "9.0"; until = "12.9"; };
    "7.2" = { from = "9.2"; until = "12.9"; };
    "7.5" = { from = "10.0"; until = null; };
    "8.0" = { from = "11.0"; until = null; };
    "8.6" = { from = "11.1"; until = null; };
    "8.7" = { from = "11.4"; until = null; };
    "8.9" = { from = "11.8"; until = null; };
    "9.0" = { from = "11.8"; until = null; };
    "10.0" = { from = "12.8"; until = null; };
    "10.1" = { from = "12.8"; until = "12.9"; }; # called 11.0 from CUDA 13.0 on
    "10.3" = { from = "12.9"; until = null; };
    "11.0" = { from = "13.0"; until = null; };
    "12.0" = { from = "12.8"; until = null; };
    "12.1" = { from = "12.9"; until = null; };
  };

  # Capabilities that the CUDA wheels of torch (cu128) hold images for.
  wheelImages = {
    "2.9.0" = wheelImages."2.9.1";
    "2.9.1" = [ "7.0" "7.5" "8.0" "8.6" "9.0" "10.0" "12.0" ];
  };

  # Embedded SoCs, whose machine code no other device of their major runs.
  tegra = [ "5.3" "6.2" "7.2" "8.7" "10.1" "11.0" ];

  atLeast = a: b: compareVersions a b != -1;
  major = capability: head (splitVersion capability);
in
rec {
  /**
    Read `9.0`, `90`, `sm90`, `sm_90` or `compute_90`.

    # Type
    `parse :: String -> String`

    # Example
    `parse "sm100" == "10.0"`
  */
  parse =
    text:
    let
      digits = match "(sm_?|compute_?)?([0-9]{1,2})([0-9])" text;
      dotted = match "(sm_?|compute_?)?([0-9]+\\.[0-9])" text;
    in
    if dotted != null then
      elemAt dotted 1
    else if digits != null then
      "${elemAt digits 1}.${elemAt digits 2}"
    else
      throw "\"${text}\" is no compute capability: write it as 9.0, 90 or sm90";

  /**
    The SM's name.

    # Type
    `sm :: Capability -> String`

    # Example
    `sm "9.0" == "sm90"`
  */
  sm = capability: "sm" + builtins.replaceStrings [ "." ] [ "" ] capability;

  /**
    Whether nvcc of this CUDA version compiles for a capability.

    # Type
    `inCuda :: CudaVersion -> Capability -> Bool`
  */
  inCuda =
    cuda: capability:
    let
      range = cudaRange.${capability} or null;
    in
    range != null && atLeast cuda range.from && (range.until == null || atLeast range.until cuda);

  /**
    The capabilities that this CUDA version compiles for, ascending.

    # Type
    `ofCuda :: CudaVersion -> [Capability]`
  */
  ofCuda =
    cuda:
    builtins.sort (a: b: compareVersions a b == -1) (filter (inCuda cuda) (attrNames cudaRange));

  /**
    Whether a device runs machine code compiled for another capability: same major, no newer minor,
    and neither is an embedded SoC. Targets with a suffix `a` or `f` are the Python side's to judge.

    Source: CUDA C++ Programming Guide, "Binary compatibility".

    # Type
    `runs :: Capability -> Capability -> Bool`

    # Example
    `runs "8.9" "8.6"` is true: device 8.9, image 8.6.
  */
  runs =
    device: image:
    device == image
    || (
      major device == major image
      && atLeast device image
      && !(isTegra device || isTegra image)
    );

  /**
    Whether a capability is that of an embedded SoC (Jetson, DRIVE).

    # Type
    `isTegra :: Capability -> Bool`
  */
  isTegra = capability: elem capability tegra;

  /**
    The capabilities that the torch wheel of this version has images for; null when this file does not
    know that version.

    # Type
    `ofTorchWheel :: TorchVersion -> [Capability] | null`
  */
  ofTorchWheel = torch: wheelImages.${torch} or null;

  /**
    Whether the torch wheel of this version has an image that the device runs. A version that this
    file does not know is taken to have one.

    # Type
    `inTorchWheel :: TorchVersion -> Capability -> Bool`
  */
  inTorchWheel =
    torch: capability:
    let
      images = ofTorchWheel torch;
    in
    images == null || any (runs capability) images;

  /** Whether vLLM has kernels for a capability at all: Volta and newer. */
  inVllm = capability: all (atLeast capability) [ "7.0" ];
}
