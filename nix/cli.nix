/**
  The command line, `vllm-variants`, from a plain package set. The matrix and the locks go with it
  (pyproject.toml says how).

  # Type
  `cli :: { lib, python312Packages, … } -> Derivation`
*/
{
  lib,
  coreutils,
  python312Packages,
  runtimeShell,
}:
let
  project = builtins.fromTOML (builtins.readFile ../pyproject.toml);
  wheel = project.tool.hatch.build.targets.wheel;

  # Only what the wheel is made of, so that its hash moves only with that.
  kept = [
    "LICENSE"
    "README.md"
    "pyproject.toml"
    "python"
  ]
  ++ lib.attrNames wheel.force-include;
  root = toString ../.;
  source = builtins.path {
    name = "vllm-variants-source";
    path = ../.;
    filter =
      path: _:
      let
        relative = lib.removePrefix "${root}/" path;
      in
      lib.elem (lib.head (lib.splitString "/" relative)) kept && baseNameOf path != "__pycache__";
  };
  version = lib.head (
    builtins.match ".*__version__ = \"([^\"]+)\".*" (
      builtins.readFile ../python/vllm_variants/__init__.py
    )
  );
in
python312Packages.buildPythonApplication {
  pname = "vllm-variants";
  inherit version;
  pyproject = true;
  src = source;

  build-system = [ python312Packages.hatchling ];
  dependencies = map (name: python312Packages.${name}) [
    "cyclonedx-python-lib"
    "jinja2"
    "lz4"
    "nvidia-ml-py"
    "packaging"
    "pip"
    "rich"
    "toml"
    "typer"
    "uv"
    "zstandard"
  ];
  # The pin's versions may be a little older than pyproject.toml asks for.
  pythonRelaxDeps = true;

  pythonImportsCheck = [ "vllm_variants" ];

  # `detect` asks the driver, through NVML. No bytecode at run time: root's would go into the store.
  postFixup = ''
    wrapProgramShell "$out/bin/vllm-variants" --set PYTHONDONTWRITEBYTECODE 1 --run ${
      lib.escapeShellArg (import ./offer-driver.nix { inherit coreutils runtimeShell; })
    }
  '';

  meta = {
    description = "vLLM for exactly your GPU: list, detect, build and verify per-SM variants";
    license = lib.licenses.mit;
    mainProgram = "vllm-variants";
  };
}
