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
            name = module.pname;
            value = module.version;
          }) modules
        );
        steps = [ ];
      }
    );

    # On NixOS the driver is where every program looks. Elsewhere the programs are offered the
    # host's driver, and nothing else of the host: nix/driver.sh says how it is found.
    offerDriver = ''
      driver=$(PATH=${coreutils}/bin ${runtimeShell} ${../../nix/driver.sh}) || driver=
      if [ -n "$driver" ]; then
        export LD_LIBRARY_PATH=$driver''${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
        export TRITON_LIBCUDA_PATH=''${TRITON_LIBCUDA_PATH:-$driver}
      fi
      unset driver'';
  in
  {
    pname = plan.name;
    requiredSystemFeatures = old.requiredSystemFeatures or [ ] ++ [ "big-parallel" ];

    # Appended: wrapPythonPrograms, which gives these functions their results, has run by then.
    postFixup = old.postFixup or "" + ''
      buildPythonPath "$out ''${pythonPath:-}"
      makeWrapper ${python.interpreter} "$out/bin/python" \
        --prefix PATH : "$program_PATH" \
        --prefix PYTHONPATH : "$program_PYTHONPATH" \
        --set PYTHONNOUSERSITE true \
        --run ${lib.escapeShellArg offerDriver}
      ln -s python "$out/bin/python3"
      wrapProgramShell "$out/bin/vllm" --run ${lib.escapeShellArg offerDriver}

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
