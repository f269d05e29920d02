# Ways to swap torch, CUDA or cuDNN that fail upstream, some of them silently. test_mends.py says
# what each must end in. Values are variants, or what is looked at in a package set.
{ nixpkgs, library ? import ../../nix }:
let
  inherit (builtins) filter mapAttrs;

  without = name: filter (mend: mend.name != name) library.mends;
  variant =
    arguments:
    library.mkVariant (
      {
        inherit nixpkgs;
        system = "x86_64-linux";
        variant = "sm90";
      }
      // arguments
    );
  set =
    arguments: changes:
    library.packageSet (
      {
        inherit nixpkgs;
        plan =
          library.plan {
            system = "x86_64-linux";
            variant = "sm90";
          }
          // changes;
      }
      // arguments
    );

  # A variant whose torch is swapped by hand. `swap` gets the five attributes that torch-bin lacks.
  swapped =
    swap:
    variant {
      mends = without "torch-wheel";
      overlays = [
        (final: prev: {
          pythonPackagesExtensions = prev.pythonPackagesExtensions ++ [
            (swap {
              cudaSupport = true;
              rocmSupport = false;
              inherit (final) cudaPackages;
              inherit (final.cudaPackages.flags) cudaCapabilities;
              stdenv = final.cudaPackages.backendStdenv;
            })
          ];
        })
      ];
    };
  everything = py: {
    torch = py.torch-bin;
    torchvision = py.torchvision-bin;
    torchaudio = py.torchaudio-bin;
    triton = py.triton-bin;
  };
  withPassthru = passthru: torch: torch.overrideAttrs (old: { passthru = old.passthru // passthru; });
  vllm = arguments: f: variant (arguments // {
    overlays = [
      (_: prev: {
        pythonPackagesExtensions = prev.pythonPackagesExtensions ++ [
          (py: pyPrev: { vllm = pyPrev.vllm.overrideAttrs (f py); })
        ];
      })
    ];
  });
  anotherCuda = inputs: variant {
    overlays = [
      (final: prev: {
        pythonPackagesExtensions = prev.pythonPackagesExtensions ++ [
          (_: pyPrev: {
            xformers = pyPrev.xformers.overrideAttrs (old: { buildInputs = old.buildInputs ++ inputs final; });
          })
        ];
      })
    ];
  };
  twoTorches = _: old: {
    propagatedBuildInputs = map (
      dependency:
      if dependency.pname or "" == "torch" then
        dependency.overrideAttrs { postInstall = "true"; }
      else
        dependency
    ) old.propagatedBuildInputs;
  };
in
{
  without = mapAttrs (_: arguments: variant arguments) (
    builtins.listToAttrs (
      map (mend: {
        inherit (mend) name;
        value = {
          mends = without mend.name;
          variant = if mend.name == "cudnn-of-the-wheel" then "sm70" else "sm90";
        };
      }) library.mends
    )
  );

  # What the whole of the mends does, to compare.
  all = swapped (five: py: pyPrev: everything py // { torch-bin = withPassthru five pyPrev.torch-bin; });

  bare = swapped (_: py: _: { torch = py.torch-bin; });
  passthru-replaced = swapped (
    five: py: pyPrev:
    everything py // { torch-bin = pyPrev.torch-bin.overrideAttrs { passthru = five; }; }
  );
  passthru-without-stdenv = swapped (
    five: py: pyPrev:
    everything py // { torch-bin = withPassthru (removeAttrs five [ "stdenv" ]) pyPrev.torch-bin; }
  );
  torch-changed-but-not-torch-bin = swapped (
    five: py: pyPrev:
    everything py
    // {
      torch = (withPassthru five pyPrev.torch-bin).overrideAttrs { postInstall = "true"; };
    }
  );
  triton-not-swapped = swapped (
    five: py: pyPrev:
    removeAttrs (everything py) [ "triton" ] // { torch-bin = withPassthru five pyPrev.torch-bin; }
  );
  only-in-vllms-override = vllm { } twoTorches;
  refused-and-overridden = (vllm { } twoTorches).overrideAttrs { mark = "mine"; };
  refused-and-overridden-twice = ((vllm { } twoTorches).overrideAttrs { }).overrideAttrs { };
  refused-and-overridden-by-argument = ((vllm { } twoTorches).overrideAttrs { }).override { ptx = true; };
  refused-by-another-output = (vllm { } twoTorches).dist;
  in-the-variants-override = (variant { }).overrideAttrs (twoTorches null);
  only-in-vllms-override-unchecked = vllm { check = false; } twoTorches;
  another-cuda-in-passthru = variant {
    overlays = [
      (final: prev: {
        pythonPackagesExtensions = prev.pythonPackagesExtensions ++ [
          (_: pyPrev: { torch-bin = withPassthru { cudaPackages = final.cudaPackages_12_8; } pyPrev.torch-bin; })
        ];
      })
    ];
  };
  # CUDA that is not an input itself: in a join, of paths or of packages, and in an input's inputs.
  another-cuda-in-a-join = anotherCuda (final: [
    (final.symlinkJoin {
      name = "cuda-redist";
      paths = [ final.cudaPackages.libcublas final.cudaPackages_12_8.libcublas ];
    })
  ]);
  another-cuda-in-a-join-of-packages = anotherCuda (final: [
    (final.runCommand "joined" { paths = [ final.cudaPackages_12_8.libcublas ]; } "")
  ]);
  another-cuda-in-a-library = anotherCuda (final: [
    (final.magma.override { cudaPackages = final.cudaPackages_12_8; })
  ]);
  another-cuda-in-a-join-of-a-library = anotherCuda (final: [
    (final.magma.overrideAttrs {
      buildInputs = [
        (final.symlinkJoin { name = "cuda-redist"; paths = [ final.cudaPackages_12_8.libcublas ]; })
      ];
    })
  ]);
  the-same-cuda-in-all-of-these = anotherCuda (final: [
    (final.symlinkJoin { name = "cuda-redist"; paths = [ final.cudaPackages.libcublas ]; })
    (final.runCommand "joined" { paths = [ final.cudaPackages.libcublas ]; } "")
    final.magma
  ]);

  # Capabilities that a package takes from a list of its own.
  source-torch-lacks-one = variant {
    variant = "sm90";
    torch = "source";
    extraCapabilities = [ "10.3" ];
  };
  source-torch-lacks-all = variant {
    variant.capability = "10.3";
    torch = "source";
  };
  vllm-compiled-for-another = (variant { }).overrideAttrs {
    cmakeFlags = [ "-DTORCH_CUDA_ARCH_LIST:STRING=8.0" ];
  };

  no-nvshmem = variant {
    overlays = [
      (_: prev: { cudaPackages = removeAttrs prev.cudaPackages [ "libnvshmem" ]; })
    ];
  };
  env-attribute-at-top-level = vllm { } (_: _: { VLLM_TARGET_DEVICE = "cpu"; });
  cpu-wheel-on-arm =
    (set { } {
      system = "aarch64-linux";
      torch = {
        from = "wheel";
        wheel = null;
      };
    }).python312Packages.torch.cudaSupport;
  ptx-as-a-capability =
    (set { } { capabilities = [ "9.0+PTX" ]; }).cudaPackages.backendStdenv.cc.version;

  # The wheel as it stands in for torch in the whole set.
  torch-wheel = (set { } { }).python312Packages.torch;

  # cuDNN as the three names of the CUDA set hold it.
  cudnn =
    let
      look = pkgs: mapAttrs (_: scope: scope.cudnn.appendRunpaths) {
        inherit (pkgs) cudaPackages cudaPackages_12 cudaPackages_12_9;
      };
    in
    {
      mended = look (set { } { });
      unmended = look (set { mends = without "cudnn-nvrtc"; } { });
      on-the-alias-only = look (
        set {
          mends = without "cudnn-nvrtc";
          overlays = [
            (_: prev: {
              cudaPackages = prev.cudaPackages.overrideScope (
                _: cudaPrev: { cudnn = cudaPrev.cudnn.overrideAttrs { appendRunpaths = [ "nvrtc" ]; }; }
              );
            })
          ];
        } { }
      );
    };
}
