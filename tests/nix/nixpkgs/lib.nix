# The functions of nixpkgs' lib that this project and the model call, with upstream's semantics.
let
  inherit (builtins)
    all
    any
    attrNames
    compareVersions
    concatLists
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    functionArgs
    head
    intersectAttrs
    isFunction
    isList
    isString
    length
    listToAttrs
    map
    mapAttrs
    match
    replaceStrings
    splitVersion
    ;

  lib = {
    inherit
      all
      any
      attrNames
      concatLists
      concatStringsSep
      elem
      filter
      foldl'
      head
      isString
      length
      listToAttrs
      map
      mapAttrs
      replaceStrings
      ;

    # ── fixed points and overriding ──
    fix =
      f:
      let
        x = f x;
      in
      x;
    extends =
      overlay: f: final:
      let
        prev = f final;
      in
      prev // overlay final prev;
    composeManyExtensions = foldl' lib.composeExtensions (_: _: { });
    composeExtensions =
      f: g: final: prev:
      let
        first = f final prev;
      in
      first // g final (prev // first);

    callPackageWith =
      scope: f: args:
      let
        function = if isFunction f then f else import f;
        wanted = functionArgs function;
        missing = filter (n: !wanted.${n} && !(scope ? ${n}) && !(args ? ${n})) (attrNames wanted);
      in
      if missing == [ ] then
        lib.makeOverridable function (intersectAttrs wanted scope // args)
      else
        throw "callPackage: missing argument ${concatStringsSep ", " missing}";

    # The result of f with `.override`; an overrideAttrs after it keeps it.
    makeOverridable =
      f: args:
      let
        result = f args;
        changed = new: args // (if isFunction new then new args else new);
        override = new: lib.makeOverridable f (changed new);
      in
      if isFunction result then
        {
          __functor = _: result;
          inherit override;
        }
      else
        result
        // {
          inherit override;
        }
        // lib.optionalAttrs (result ? overrideAttrs) {
          overrideAttrs = g: lib.makeOverridable (a: (f a).overrideAttrs g) args;
        };

    # A scope: attributes that see each other. What overrideScope returns has no `.override`.
    makeScope =
      newScope: f:
      let
        self = f self // {
          newScope = scope: newScope (self // scope);
          callPackage = self.newScope { };
          overrideScope = g: lib.makeScope newScope (lib.extends g f);
        };
      in
      self;

    extendDerivation =
      condition: passthru: drv:
      let
        named = name: {
          inherit name;
          value = extended drv.${name} // {
            inherit (drv) type;
            outputName = name;
          };
        };
        extended =
          output:
          output
          // passthru
          // {
            drvPath =
              assert condition;
              output.drvPath;
            outPath =
              assert condition;
              output.outPath;
          };
      in
      extended drv // listToAttrs (map named drv.outputs or [ "out" ]);

    # ── lists, strings, versions ──
    optional = condition: x: if condition then [ x ] else [ ];
    optionals = condition: xs: if condition then xs else [ ];
    optionalAttrs = condition: attrs: if condition then attrs else { };
    optionalString = condition: text: if condition then text else "";
    toList = x: if isList x then x else [ x ];
    last = xs: elemAt xs (length xs - 1);
    init = xs: builtins.genList (elemAt xs) (length xs - 1);
    unique = foldl' (seen: x: if elem x seen then seen else seen ++ [ x ]) [ ];
    intersectLists = xs: filter (x: elem x xs);
    concatMapStringsSep =
      separator: f: xs:
      concatStringsSep separator (map f xs);
    hasInfix = infix: text: match ".*${lib.escapeRegex infix}.*" text != null;
    escapeRegex = replaceStrings [ "." "+" "*" "(" ")" ] [ "\\." "\\+" "\\*" "\\(" "\\)" ];
    removePrefix =
      prefix: text:
      if builtins.substring 0 (builtins.stringLength prefix) text == prefix then
        builtins.substring (builtins.stringLength prefix) (-1) text
      else
        text;
    splitString = separator: text: filter builtins.isString (builtins.split separator text);
    filterAttrs =
      keep: attrs: removeAttrs attrs (filter (name: !(keep name attrs.${name})) (attrNames attrs));
    licenses.mit.spdxId = "MIT";
    escapeShellArg = text: "'${replaceStrings [ "'" ] [ "'\\''" ] text}'";
    versionOlder = a: b: compareVersions b a == 1;
    versionAtLeast = a: b: !(lib.versionOlder a b);
    majorMinor =
      version: concatStringsSep "." (map (elemAt (splitVersion version)) [ 0 1 ]);
    cmakeFeature = name: value: "-D${name}:STRING=${value}";

    # ── derivations and refusals ──
    getLib = drv: drv.lib or drv;
    getDev = drv: drv.dev or drv;
    getBin = drv: drv.bin or drv;
    getExe = drv: "${drv}/bin/${drv.meta.mainProgram}";
    throwIf = condition: message: if condition then throw message else x: x;
    throwIfNot = condition: lib.throwIf (!condition);
  };
in
lib
