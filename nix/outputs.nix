/**
  The flake's outputs, from its inputs. Names and systems come from the matrix.

  # Type
  `outputs :: { ${input} :: Nixpkgs } -> Outputs`
*/
inputs:
let
  inherit (builtins) intersectAttrs listToAttrs mapAttrs;

  library = import ./.;
  inherit (library) matrix systems;

  # Every variant of every release, under short and full names; one of another system is a refusal.
  # Made once: a package set costs 1 to 2 GB of memory, and every output below is made of these.
  every = mapAttrs (
    _: release:
    forSystems (
      system:
      library.variants {
        inherit system release;
        nixpkgs = library.inputOf inputs release;
      }
    )
  ) matrix.releases;
  variants = release: system: every.${release.name}.${system};
  # Those that this system builds.
  homed =
    release: system: removeAttrs (variants release system) (library.namesElsewhere release system);

  forSystems =
    f:
    listToAttrs (
      map (system: {
        name = system;
        value = f system;
      }) systems
    );
  plain = forSystems (
    system:
    import ./plain.nix {
      inherit system;
      inherit (inputs) nixpkgs;
    }
  );
  # The same as `variant.tests`, with one plain package set for all of them.
  proofs =
    name: system: mapAttrs (_: (import ./proofs.nix plain.${system}).${name}) (homed matrix.default system);

  app = program: description: {
    type = "app";
    program = toString program;
    meta = { inherit description; };
  };
in
{
  lib = library;

  packages = forSystems (
    system:
    homed matrix.default system
    // {
      inherit (plain.${system}) cli;
      # `nix build` and `nix run` without a name: the command line, which builds no vLLM by itself.
      default = plain.${system}.cli;
    }
  );

  # What `nix flake check` does not build: every release, the proofs of built variants, and a
  # refusal under the names of another system's variants.
  legacyPackages = forSystems (
    system:
    variants matrix.default system
    // {
      releases = mapAttrs (_: release: variants release system) matrix.releases;
      audits = proofs "audit" system;
      gpuChecks = proofs "gpu" system;
    }
  );

  overlays.default = final: _: {
    vllmVariants = homed matrix.default final.stdenv.hostPlatform.system;
  };

  # Under short names only: a job under two names is evaluated and listed twice.
  hydraJobs = mapAttrs (_: jobs: forSystems (system: intersectAttrs matrix.variants (jobs system))) {
    packages = homed matrix.default;
    audits = proofs "audit";
    gpuChecks = proofs "gpu";
  };

  apps = forSystems (
    system:
    let
      inherit (plain.${system}) cli pkgs;
      verify = pkgs.writeShellScript "verify" ''exec ${cli}/bin/vllm-variants verify "$@"'';
    in
    {
      default = app "${cli}/bin/vllm-variants" "List, detect, build, audit and verify variants";
      verify = app verify "GPU checks of a built variant: nix run .#verify -- --result ./result";
    }
  );

  checks = forSystems (system: {
    inherit (plain.${system}) cli;
    pure = plain.${system}.pkgs.callPackage ../tests/nix/check.nix { inherit library; };
  });

  devShells = forSystems (system: {
    default = plain.${system}.pkgs.callPackage ./shell.nix { inherit (plain.${system}) cli; };
  });

  formatter = forSystems (system: plain.${system}.pkgs.nixfmt-tree);
}
