/**
  The variants of one release on one system, under their short and their full names. A variant of
  another system stands there too, as the refusal that says where it is built.

  # Type
  `variants :: { system, release, nixpkgs, … } -> { ${name} :: Derivation }`
*/
{ release, ... }@arguments:
let
  inherit (import ./.) matrix mkVariant names;
  one = variant: mkVariant (arguments // { variant = variant.short; });
in
builtins.listToAttrs (
  builtins.concatMap (
    variant:
    map
      (name: {
        inherit name;
        value = one variant;
      })
      [
        variant.short
        (names.full release variant)
      ]
  ) (builtins.attrValues matrix.variants)
)
