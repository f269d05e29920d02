/**
  The matrix: `variants.toml`, each release and variant with its own name in it. Pure.

  # Type
  ```
  { default :: Release; releases :: { ${name} :: Release }; variants :: { ${short} :: Variant }; }
  Release = { name, nixpkgs, python, cuda, driver, torch :: String; cutlass :: [String]; }
  Variant = { short, capability, architecture, system :: String; gpus :: [String]; related :: [..]; }
  ```
*/
let
  data = builtins.fromTOML (builtins.readFile ../variants.toml);
in
rec {
  releases = builtins.mapAttrs (name: release: { inherit name; } // release) data.release;
  variants = builtins.mapAttrs (
    short: variant:
    {
      inherit short;
      related = [ ];
    }
    // variant
  ) data.variant;
  default = releases.${data.default-release};
}
