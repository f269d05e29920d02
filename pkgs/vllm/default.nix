/**
  The one overrideAttrs on nixpkgs' vLLM. What it cannot change, because it is an argument of the
  package set (torch, CUDA, capabilities), is in nix/mends and nix/package-set.nix.

  # Type
  `{ plan, vllm, modules :: [Derivation], versions, revision :: String | null, tests, … } -> Derivation`
*/
{
  lib,
  coreutils,
  runtimeShell,
  writeText,
  vllm,
  plan,
  modules,
  versions,
  revision,
  tests,
}:
vllm.overrideAttrs (
  old:
  let
    python = old.passthru.pythonModule;
    inherit (plan) release;

    manifest = writeText "${plan.name}-manifest.json" (
      builtins.toJSON {
        schema = 1;
        variant = plan.name;
        inherit (plan) short capability system;
        sm = "sm" + lib.replaceStrings [ "." ] [ "" ] plan.capability;
        capabilities = plan.capabilities;
        release = release.name;
        stack = {
          inherit (release)
            python
            cuda
            torch
            driver
            cutlass
            ;
        };
        torch = plan.torch.from;
        builder = "nix";
        nixpkgs = revision;
        python = versions.python;
        packages = {
          vllm = old.version;
        }
        // lib.listToAttrs (
          map (module: {
            name = module.pname or module.name;
            value = module.version or "unknown";
          }) modules
        );
        steps = [ ];
      }
    );

    # The driver is where NixOS has it, or nix/driver.sh finds it.
    offerDriver = lib.escapeShellArg (
      import ../../nix/offer-driver.nix { inherit coreutils runtimeShell; }
    );
  in
  {
    pname = plan.name;
    requiredSystemFeatures = old.requiredSystemFeatures or [ ] ++ [ "big-parallel" ];

    # postFixup comes after hours of compiling: that its functions are there is seen at the start.
    postUnpack = old.postUnpack or "" + ''
      for function in buildPythonPath makeWrapper wrapProgramShell; do
        command -v "$function" > /dev/null || { echo "no $function: bin/python cannot be made" >&2; exit 1; }
      done
    '';

    # Appended: wrapPythonPrograms has run by then.
    postFixup = old.postFixup or "" + ''
      buildPythonPath "$out ''${pythonPath:-}"
      makeWrapper ${python.interpreter} "$out/bin/python" \
        --prefix PATH : "$program_PATH" \
        --prefix PYTHONPATH : "$program_PYTHONPATH" \
        --set PYTHONNOUSERSITE true \
        --run ${offerDriver}
      ln -s python "$out/bin/python3"
      wrapProgramShell "$out/bin/vllm" --run ${offerDriver}

      mkdir -p "$out/share/vllm-variants"
      cp ${manifest} "$out/share/vllm-variants/manifest.json"
    '';

    passthru = old.passthru // {
      variant = plan.name;
      inherit (plan) capability short;
      release = release.name;
      torch = plan.torch.from;
      inherit manifest versions tests;
    };

    meta = old.meta // {
      description = "vLLM ${release.name} for ${plan.architecture}, SM ${plan.capability}, CUDA ${release.cuda}${
        lib.optionalString (plan.gpus != [ ]) ": ${lib.concatStringsSep ", " plan.gpus}"
      }";
      platforms = [ plan.system ];
      mainProgram = "vllm";
    };
  }
)
