/**
  Names of variants: `sm90` and `vllm-python312-cuda12_9-sm90` are the same one. Pure. The Python
  side's twin is `matrix.py`; tests/nix/test_flake.py holds both to the same list.
*/
let
  inherit (builtins)
    any
    attrNames
    attrValues
    concatStringsSep
    filter
    head
    replaceStrings
    ;

  matrix = import ./matrix.nix;
in
rec {
  /**
    A variant's full name in a release.

    # Type
    `full :: Release -> Variant -> String`

    # Example
    `full default variants.sm90 == "vllm-python312-cuda12_9-sm90"`
  */
  full =
    release: variant:
    "vllm-python${replaceStrings [ "." ] [ "" ] release.python}"
    + "-cuda${replaceStrings [ "." ] [ "_" ] release.cuda}-${variant.short}";

  /**
    The variant that a short or a full name means; throws with all of them when there is none.

    # Type
    `parse :: String -> Variant`
  */
  parse =
    text:
    let
      named = variant: [ variant.short ] ++ map (release: full release variant) (attrValues matrix.releases);
      found = filter (variant: any (name: name == text) (named variant)) (attrValues matrix.variants);
    in
    if found != [ ] then
      head found
    else
      throw "there is no variant \"${text}\": ${concatStringsSep ", " (attrNames matrix.variants)} are declared in variants.toml";
}
