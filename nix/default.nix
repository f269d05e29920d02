/**
  The library: functions over `variants.toml`. Nothing here looks at a nixpkgs but the functions
  that are given one, and those only after the plan stands.
*/
let
  inherit (builtins)
    attrNames
    attrValues
    concatMap
    filter
    groupBy
    replaceStrings
    ;
in
rec {
  matrix = import ./matrix.nix;
  capability = import ./capability.nix;
  names = import ./names.nix;
  plan = import ./plan.nix;
  mends = import ./mends;

  packageSet = import ./package-set.nix;
  closure = import ./closure.nix;
  mkVariant = import ./variant.nix;
  variants = import ./variants.nix;

  /** Systems that have variants: `[ "aarch64-linux" "x86_64-linux" ]`. */
  systems = attrNames (groupBy (variant: variant.system) (attrValues matrix.variants));

  /**
    Short and full names of the variants that other systems build.

    # Type
    `namesElsewhere :: Release -> System -> [String]`
  */
  namesElsewhere =
    release: system:
    concatMap (variant: [
      variant.short
      (names.full release variant)
    ]) (filter (variant: variant.system != system) (attrValues matrix.variants));

  /**
    The name of the flake input that holds a release's nixpkgs.

    # Type
    `inputName :: Release -> String`

    # Example
    `inputName releases."0.11.2" == "nixpkgs-0_11_2"`
  */
  inputName =
    release:
    if release.name == matrix.default.name then
      "nixpkgs"
    else
      "nixpkgs-${replaceStrings [ "." ] [ "_" ] release.name}";

  /**
    A release's nixpkgs out of a flake's inputs.

    # Type
    `inputOf :: Inputs -> Release -> Nixpkgs`
  */
  inputOf =
    inputs: release:
    inputs.${inputName release} or (throw "release ${release.name} has no flake input: add inputs.${inputName release}.url = \"github:NixOS/nixpkgs/${release.nixpkgs}\" to flake.nix");
}
