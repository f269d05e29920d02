/**
  The matrix: `variants.toml`, each release and variant with its own name in it. Pure. Only what a
  nixpkgs packages: not the releases of wheels alone, nor the variants that only such a release has.

  # Type
  ```
  { default :: Release; releases :: { ${name} :: Release }; variants :: { ${short} :: Variant }; }
  Release = { name, nixpkgs, python, cuda, driver, torch :: String; cutlass :: [String]; }
  Variant = { short, capability, architecture, system :: String; gpus :: [String]; related :: [..]; }
  ```
*/
let
  inherit (builtins)
    attrNames
    attrValues
    concatMap
    filter
    fromTOML
    mapAttrs
    readFile
    ;
  data = fromTOML (readFile ../variants.toml);
  ownOf = releases: concatMap (release: release.own-variants or [ ]) (attrValues releases);
  packaged = removeAttrs data.release (
    filter (name: !(data.release.${name} ? nixpkgs)) (attrNames data.release)
  );
  elsewhere = filter (short: !(builtins.elem short (ownOf packaged))) (ownOf data.release);
in
rec {
  releases = mapAttrs (name: release: { inherit name; } // release) packaged;
  variants = mapAttrs (
    short: variant:
    {
      inherit short;
      related = [ ];
    }
    // variant
  ) (removeAttrs data.variant elsewhere);
  default = releases.${data.default-release};
}
