/**
  Names of variants: `sm90` and `vllm-python312-cuda12_9-sm90` are the same one. Pure. The Python
  side's twin is `matrix.py`; tests/nix/test_flake.py holds both to the same list.
*/
let
  inherit (builtins)
    attrNames
    attrValues
    concatStringsSep
    elemAt
    filter
    foldl'
    genList
    head
    length
    replaceStrings
    sort
    stringLength
    substring
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
    The variant that a short or a full name means; throws with the nearest name.

    # Type
    `parse :: String -> Variant`
  */
  parse =
    text:
    let
      found = filter (
        variant:
        text == variant.short
        || builtins.any (release: text == full release variant) (attrValues matrix.releases)
      ) (attrValues matrix.variants);
      # A long text is compared with full names, a short one with short names.
      candidates =
        if stringLength text > 14 then
          map (full matrix.default) (attrValues matrix.variants)
        else
          attrNames matrix.variants;
    in
    if found != [ ] then
      head found
    else
      throw "there is no variant \"${text}\": did you mean ${nearest text candidates}? All: ${concatStringsSep ", " (attrNames matrix.variants)}";

  /**
    The candidate with the fewest edits from a text.

    # Type
    `nearest :: String -> [String] -> String`

    # Example
    `nearest "sm09" [ "sm80" "sm90" ]`
  */
  nearest =
    text: candidates:
    let
      ranked = map (name: {
        inherit name;
        edits = distance text name;
      }) candidates;
    in
    (head (sort (a: b: a.edits < b.edits) ranked)).name;

  /**
    Levenshtein's distance: the edits of one character that lead from one text to another.

    # Type
    `distance :: String -> String -> Int`
  */
  distance =
    a: b:
    let
      min = foldl' (x: y: if x < y then x else y) 1000;
      width = stringLength b;
      row =
        previous: i:
        foldl' (
          current: j:
          current
          ++ [
            (min [
              (elemAt previous (j + 1) + 1)
              (elemAt current j + 1)
              (elemAt previous j + (if substring i 1 a == substring j 1 b then 0 else 1))
            ])
          ]
        ) [ (i + 1) ] (genList (j: j) width);
      rows = foldl' row (genList (j: j) (width + 1)) (genList (i: i) (stringLength a));
    in
    elemAt rows (length rows - 1);
}
