/**
  A variant whose name, version and description come from its plan, so that a list of variants
  (`nix flake show`, `nix search`, a board of builds) makes no package set. The attributes of
  `package` cannot be counted without one: those that people and tools ask a derivation for are named
  here, and `.package` is the derivation with all of them.

  # Type
  `listed :: { plan :: Plan; package :: Derivation; } -> Derivation`
*/
{ plan, package }:
let
  inherit (builtins) listToAttrs;

  from =
    attributes: names:
    listToAttrs (
      map (name: {
        inherit name;
        value = attributes.${name};
      }) names
    );
in
# A plan that is refused is refused at once.
builtins.seq plan.name (
  from package [
    # of every derivation
    "all"
    "args"
    "builder"
    "dist"
    "drvAttrs"
    "drvPath"
    "out"
    "outPath"
    "outputName"
    "outputs"
    # of nixpkgs' stdenv
    "buildInputs"
    "cmakeFlags"
    "nativeBuildInputs"
    "overrideAttrs"
    "passthru"
    "propagatedBuildInputs"
    "requiredSystemFeatures"
    "src"
    "stdenv"
    # of its Python packages
    "dependencies"
    "pythonModule"
    "requiredPythonModules"
    # of this project
    "manifest"
    "tests"
    "versions"
  ]
  // {
    type = "derivation";
    name = plan.storeName;
    pname = plan.name;
    version = plan.release.name;
    inherit (plan) system capability short;
    variant = plan.name;
    release = plan.release.name;
    torch = plan.torch.from;
    inherit package;

    meta = {
      inherit (plan) description;
      platforms = [ plan.system ];
      mainProgram = "vllm";
      inherit (package.meta) outputsToInstall;
      available = package.meta.available or true;
      broken = package.meta.broken or false;
      homepage = package.meta.homepage or "https://github.com/vllm-project/vllm";
      insecure = package.meta.insecure or false;
      license = package.meta.license or [ ];
      maintainers = package.meta.maintainers or [ ];
      unfree = package.meta.unfree or false;
      unsupported = package.meta.unsupported or false;
    };
  }
)
