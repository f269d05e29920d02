# A model of nixpkgs: what this project relies on, behaving as upstream does. README.md says what
# it holds and why. `vllm` and `behaviour` are set by the folders below: releases/, behaviour/.
{
  system,
  config ? { },
  overlays ? [ ],
  vllm ? "0.13.0",
  behaviour ? { },
}:
let
  lib = import ./lib.nix;

  packages = final: {
    inherit lib config system;
    path = ./.;
    callPackage = final.newScope { };
    newScope = scope: lib.callPackageWith (final // scope);
    pkgs = final;

    # A compiler of its own for nvcc: 12.9 takes GCC 14, the default here is 15.
    gcc14 = import ./compiler.nix { inherit system; } "14.3.0";
    gcc15 = import ./compiler.nix { inherit system; } "15.2.0";
    stdenv = final.stdenvWith final.gcc15;
    stdenvWith = cc: import ./stdenv.nix { inherit lib system config cc; };

    fetchurl =
      { url, hash, name ? baseNameOf url }:
      final.runCommand name { inherit url; } ''
        printf '%s' "$url" > "$out"
      ''
      // {
        inherit url;
      };
    runCommand =
      name: env: script:
      final.stdenv.mkDerivation (
        env
        // {
          inherit name;
          buildPhase = "rmdir \"$out\"; ${script}";
        }
      );
    # Upstream too the paths become text, which remembers the derivations.
    symlinkJoin =
      { name, paths }:
      final.runCommand name { paths = map (path: "${path}") paths; } ''
        mkdir -p "$out/lib"
        for path in $paths; do ln -sf "$path"/lib/* "$out/lib"; done
      '';
    # A library that is no Python module, with CUDA in it.
    magma = final.callPackage (
      { stdenv, cudaPackages }:
      stdenv.mkDerivation {
        pname = "magma";
        version = "2.9.0";
        buildInputs = [ cudaPackages.libcublas ];
      }
    ) { };
    writeText = name: text: final.runCommand name { inherit text; } ''printf '%s' "$text" > "$out"'';
    writeShellScript =
      name: text:
      final.runCommand name { text = "#!/bin/sh\n${text}"; } ''
        printf '%s' "$text" > "$out"; chmod +x "$out"
      '';
    runtimeShell = "/bin/sh";
    # The whole closure upstream; here what the model's programs can name without Nix: the roots,
    # and what they propagate.
    closureInfo =
      { rootPaths }:
      final.runCommand "closure-info" { inherit rootPaths; } ''
        mkdir "$out"
        for path in $rootPaths; do
          echo "$path"
          tr ' ' '\n' < "$path/nix-support/propagated-build-inputs"
        done > "$out/store-paths"
      '';
    coreutils = final.stdenv.mkDerivation {
      name = "coreutils-9.8";
      buildPhase = ''ln -s "$(dirname "$(command -v readlink)")" "$out/bin"'';
    };
    mkShell =
      attrs:
      final.stdenv.mkDerivation (
        {
          name = "nix-shell";
          nativeBuildInputs = attrs.packages or [ ];
        }
        // removeAttrs attrs [ "packages" ]
      );
  };

  tools =
    final: _:
    lib.mapAttrs
      (
        pname: version:
        final.stdenv.mkDerivation {
          inherit pname version;
          meta.mainProgram = pname;
          buildPhase = ''
            mkdir -p "$out/bin"
            echo '#!/bin/sh' > "$out/bin/$pname"; chmod +x "$out/bin/$pname"
          '';
        }
      )
      {
        git = "2.52.0";
        nix-prefetch-github = "7.1.0";
        nixfmt-tree = "1.1.0";
        ruff = "0.14.11";
        uv = "0.9.26";
      };

  cuda = import ./cuda.nix;
  python = import ./python.nix { inherit vllm behaviour; };
in
lib.fix (
  lib.foldl' (f: overlay: lib.extends overlay f) packages (
    [
      tools
      cuda
      python
    ]
    ++ overlays
  )
)
