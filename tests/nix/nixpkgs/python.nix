# Python: the interpreter, its package set with overlays (pythonPackagesExtensions), and the
# builder with the traits this project meets. Upstream: pkgs/development/interpreters/python.
{ vllm, behaviour }:
final: prev:
let
  inherit (prev) lib;

  # The interpreter runs the Python of the host, so that a result's bin/python really runs. A
  # copy of the model may name another one in the file `interpreter`.
  named = if builtins.pathExists ./interpreter then builtins.readFile ./interpreter else "";

  interpreter = final.stdenv.mkDerivation {
    pname = "python3";
    version = "3.12.12";
    host = lib.replaceStrings [ "\n" ] [ "" ] named;
    buildPhase = ''
      for host in $host /usr/local/bin/python3.12 /usr/bin/python3.12 /usr/local/bin/python3 /usr/bin/python3; do
        if [ -x "$host" ]; then break; fi
      done
      mkdir -p "$out/bin"
      printf '#!/bin/sh\nexec %s "$@"\n' "$host" > "$out/bin/python3.12"
      chmod +x "$out/bin/python3.12"
    '';
    passthru = {
      interpreter = "${interpreter}/bin/python3.12";
      pythonVersion = "3.12";
      sitePackages = "lib/python3.12/site-packages";
      pkgs = packages;
      withPackages =
        f:
        final.stdenv.mkDerivation {
          name = "python3-3.12.12-env";
          inputs = f packages;
          buildPhase = ''mkdir -p "$out/bin"; ln -s ${interpreter.interpreter} "$out/bin/python3"'';
        };
    };
    meta.mainProgram = "python3.12";
  };

  hook =
    name: file:
    final.runCommand name { inherit file; } ''
      mkdir -p "$out/nix-support"; cat "$file" > "$out/nix-support/setup-hook"
    '';

  # A module of the set: it propagates the interpreter and its dependencies, checks the closure
  # for two of one package when it builds, and freezes requiredPythonModules when it is made.
  build =
    stdenv: fnOrAttrs:
    let
      arguments = if builtins.isFunction fnOrAttrs then fnOrAttrs else (_: fnOrAttrs);
      first = lib.fix arguments;
      modules = lib.unique (
        lib.filter (d: d ? pythonModule) (
          lib.concatLists (
            map (d: [ d ] ++ d.requiredPythonModules or [ ]) (first.dependencies or [ ])
          )
        )
      );
    in
    stdenv.mkDerivation (
      finalAttrs:
      let
        attrs = arguments finalAttrs;
        pyproject =
          finalAttrs.passthru.pyproject
            or (throw "passthru.pyproject missing after overrideAttrs overriding");
        dependencies = attrs.dependencies or [ ];
        # A project of hatchling's: what its wheel holds beside the package.
        included =
          if lib.isString attrs.src or null then
            (builtins.fromTOML (builtins.readFile "${attrs.src}/pyproject.toml"))
            .tool.hatch.build.targets.wheel.force-include
          else
            { };
      in
      removeAttrs attrs [
        "dependencies"
        "build-system"
        "pyproject"
        "format"
        "optional-dependencies"
      ]
      // {
        name = "python3.12-${finalAttrs.pname}-${finalAttrs.version}";
        outputs = attrs.outputs or [ "out" ] ++ lib.optional pyproject "dist";
        nativeBuildInputs = [
          interpreter
          packages.wrapPython
          packages.pythonCatchConflictsHook
        ]
        ++ attrs.nativeBuildInputs or [ ]
        ++ attrs.build-system or [ ];
        propagatedBuildInputs = attrs.propagatedBuildInputs or [ ] ++ dependencies ++ [ interpreter ];
        isWheel = !pyproject;
        included = map (from: "${from}=${included.${from}}") (lib.attrNames included);
        module = attrs.module or (lib.replaceStrings [ "-" ] [ "_" ] attrs.pname);
        installPhase = attrs.installPhase or ''installModule'';
        postFixup = "wrapPythonPrograms; catchConflicts\n" + attrs.postFixup or "";
        passthru = {
          pythonModule = interpreter;
          requiredPythonModules = modules;
          pyproject = attrs.pyproject or false;
          inherit dependencies;
          build-system = attrs.build-system or [ ];
        }
        // attrs.passthru or { };
        meta = {
          platforms = [ "x86_64-linux" "aarch64-linux" ];
        }
        // attrs.meta or { };
      }
    );

  overridable = stdenv: {
    __functor = _: build stdenv;
    override = new: overridable new.stdenv;
  };

  initial = self: {
    callPackage = f: lib.callPackageWith (final // self) f;
    python = interpreter;
    pkgs = final;
    buildPythonPackage = overridable final.stdenv;
    buildPythonApplication = self.buildPythonPackage;
    wrapPython = hook "wrap-python-hook" ./wrap-python.sh;
    pythonCatchConflictsHook = hook "python-catch-conflicts-hook" ./catch-conflicts.sh;
  };

  packages = lib.fix (
    lib.foldl' (f: extension: lib.extends extension f) initial (
      [ (import ./python-packages.nix { inherit vllm behaviour; }) ] ++ final.pythonPackagesExtensions
    )
  );
in
{
  pythonPackagesExtensions = [ ];
  python312 = interpreter;
  python312Packages = packages;
}
