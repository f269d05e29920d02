# stdenv: mkDerivation with `finalAttrs`, overrideAttrs, `env`, `passthru` and the checks that
# refuse a package at drvPath, not before (name and flags of a refused package still evaluate).
{
  lib,
  system,
  config,
  cc,
}:
let
  hostPlatform = {
    inherit system;
    isLinux = true;
    isx86_64 = system == "x86_64-linux";
    isAarch64 = system == "aarch64-linux";
  };

  text = x: if builtins.isList x then map text (builtins.filter (y: y != null) x) else x;

  refusal =
    name: meta:
    if meta ? platforms && !(lib.elem system meta.platforms) then
      "Package ‘${name}’ is not available on the requested hostPlatform: ${system}"
    else if meta.unfree or false && !(config.allowUnfree or false) then
      "Package ‘${name}’ has an unfree license (‘unfree’), refusing to evaluate"
    else
      lib.concatMapStringsSep "; " (
        a: "Package ‘${name}’ is not available on the requested hostPlatform: ${a.message}"
      ) (lib.filter (a: !a.assertion) (meta.platformAssertions or [ ]));

  make =
    stdenv: rattrs:
    let
      attrs = rattrs (attrs // { finalPackage = package; });
      name = attrs.name or "${attrs.pname}-${attrs.version}";
      env = attrs.env or { };
      clash = builtins.attrNames (builtins.intersectAttrs env attrs);
      drvAttrs =
        removeAttrs attrs [
          "env"
          "passthru"
          "meta"
        ]
        // lib.throwIf (clash != [ ])
          "The ‘env’ attribute set cannot contain any attributes passed to derivation. The following attributes are overlapping: ${lib.concatStringsSep ", " clash}"
          env
        // {
          inherit name system stdenv;
          builder = "/bin/sh";
          args = [ ./setup.sh ];
          outputs = attrs.outputs or [ "out" ];
        };
      refused = refusal name (attrs.meta or { });
      package =
        lib.extendDerivation (lib.throwIf (refused != "") refused true)
          (
            {
              meta = {
                outputsToInstall = [ (lib.head (attrs.outputs or [ "out" ])) ];
              }
              // attrs.meta;
              passthru = attrs.passthru or { };
              overrideAttrs =
                f:
                make stdenv (
                  final:
                  let
                    prev = rattrs final;
                    once = if builtins.isFunction f then f prev else f;
                  in
                  prev // (if builtins.isFunction once then f final prev else once)
                );
            }
            // attrs.passthru or { }
          )
          (derivation (lib.mapAttrs (_: text) drvAttrs) // removeAttrs attrs [ "outputs" ]);
    in
    package;

  self = {
    inherit cc hostPlatform system;
    targetPlatform = hostPlatform;
    buildPlatform = hostPlatform;
    mkDerivation =
      attrs:
      make self (
        final: { meta = { }; } // (if builtins.isFunction attrs then attrs final else attrs)
      );
    # In a derivation's environment a stdenv is its compiler.
    outPath = cc.outPath;
    type = "derivation";
    inherit (cc) drvPath name outputName;
  };
in
self
