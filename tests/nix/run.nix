# Runs pure.nix: a list of failures, each { test; expected; found; }. Errors are forced here, their
# words are compared by test_pure.py, since an evaluation cannot read its own error.
{
  library ? import ../../nix,
  tests ? import ./pure.nix { inherit library; },
}:
let
  inherit (builtins)
    attrNames
    concatMap
    deepSeq
    filter
    tryEval
    ;

  outcome = expr: tryEval (deepSeq expr expr);
  verdict =
    test: case:
    let
      found = outcome case.expr;
    in
    if case ? expectedError then
      { ok = !found.success; expected = "an error"; found = found.value; }
    else
      { ok = found.success && found.value == case.expected; inherit (case) expected; found = if found.success then found.value else "an error"; };
  failing = filter (v: !v.ok) (
    concatMap (
      subject:
      map (name: { test = "${subject}.${name}"; } // verdict name tests.${subject}.${name}) (
        attrNames tests.${subject}
      )
    ) (attrNames tests)
  );
in
map (v: removeAttrs v [ "ok" ]) failing
