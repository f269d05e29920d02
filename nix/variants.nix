/**
  The variants of one release on one system, under their short and their full names: one value a
  variant, so that both names share its package set. A variant of another system stands there too,
  as the refusal that says where it is built.

  # Type
  `variants :: { system, release, nixpkgs, … } -> { ${name} :: Derivation }`
*/
{ release, ... }@arguments:
let
  inherit (import ./.) matrix mkVariant names;
  named =
    variant:
    let
      value = mkVariant (arguments // { variant = variant.short; });
    in
    map (name: { inherit name value; }) [
      variant.short
      (names.full release variant)
    ];
in
builtins.listToAttrs (builtins.concatMap named (builtins.attrValues matrix.variants))
