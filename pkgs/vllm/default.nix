/**
  The one overrideAttrs on nixpkgs' vLLM. What it cannot change, because it is an argument of the
  package set (torch, CUDA, capabilities), is in nix/mends and nix/package-set.nix.

  # Type
  ```
  { plan, vllm, versions, torchCapabilities, revision :: String | null,
    closureOf :: Derivation -> { modules :: [Derivation]; sound :: Bool, or it throws },
    proofs :: { ${name} :: Derivation -> Derivation }, … } -> Derivation
  ```
*/
{
  lib,
  coreutils,
  runtimeShell,
  writeText,
  vllm,
  plan,
  versions,
  torchCapabilities,
  revision,
  closureOf,
  proofs,
}:
vllm.overrideAttrs (
  final: old:
  let
    # Of the package as it is in the end, so that a later overrideAttrs is checked and recorded too.
    closure = closureOf final.finalPackage;

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
        # Not always those of vLLM above; null where nobody knows.
        torch_capabilities = torchCapabilities;
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
          }) closure.modules
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
    name = plan.storeName;
    pname = plan.name;
    requiredSystemFeatures = old.requiredSystemFeatures or [ ] ++ [ "big-parallel" ];

    # postFixup comes after hours of compiling: that its functions are there is seen at the start.
    # The closure is judged in an attribute of the derivation: whoever forces it, by whatever way, is
    # told, and names, versions and flags still evaluate.
    postUnpack = assert closure.sound; old.postUnpack or "" + ''
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
      inherit manifest versions;
      tests = lib.mapAttrs (_: proof: proof final.finalPackage) proofs;
    };

    meta = old.meta // {
      inherit (plan) description;
      platforms = [ plan.system ];
      mainProgram = "vllm";
    };
  }
)
