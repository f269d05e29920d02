# Pure tests of the library: { ${subject}.${case} = { expr; expected } or { expr; expectedError } }.
# A subject is a public function, by its path in `lib`; test_pure.py fails when one has no test.
# Nothing here has a nixpkgs: what takes one is given `stub`, which throws when it is looked at.
{ library }:
let
  inherit (library)
    capability
    matrix
    names
    plan
    ;
  inherit (matrix) default releases variants;
  stub = throw "a nixpkgs was looked at";

  sm90 = {
    system = "x86_64-linux";
    variant = "sm90";
  };
  planned = attributes: (plan (sm90 // attributes));
in
{
  "matrix.variants" = {
    are-ten = {
      expr = builtins.length (builtins.attrNames variants);
      expected = 10;
    };
    know-their-own-name = {
      expr = variants.sm90-arm64.short;
      expected = "sm90-arm64";
    };
    without-relatives-say-so = {
      expr = variants.sm90.related;
      expected = [ ];
    };
    with-relatives-keep-them = {
      expr = map (r: r.capability) variants.sm100-arm64.related;
      expected = [ "10.3" ];
    };
  };

  "matrix.releases" = {
    know-their-own-name = {
      expr = map (r: r.name) (builtins.attrValues releases);
      expected = [ "0.11.2" "0.13.0" ];
    };
  };

  "matrix.default" = {
    is-the-declared-one = {
      expr = default.name;
      expected = "0.13.0";
    };
  };

  "capability.parse" = {
    dotted = {
      expr = capability.parse "12.0";
      expected = "12.0";
    };
    digits = {
      expr = map capability.parse [ "90" "100" "sm75" "sm_120" "compute_89" "sm_10.3" ];
      expected = [ "9.0" "10.0" "7.5" "12.0" "8.9" "10.3" ];
    };
    refuses-other-text = {
      expr = capability.parse "hopper";
      expectedError = "\"hopper\" is no compute capability: write it as 9.0, 90 or sm90";
    };
    refuses-ptx = {
      expr = capability.parse "9.0+PTX";
      expectedError = "\"9.0+PTX\" is no compute capability: write it as 9.0, 90 or sm90";
    };
  };

  "capability.sm" = {
    has-the-digits = {
      expr = map capability.sm [ "9.0" "10.3" ];
      expected = [ "sm90" "sm103" ];
    };
  };

  "capability.inCuda" = {
    volta-ends-with-12 = {
      expr = map (cuda: capability.inCuda cuda "7.0") [ "12.9" "13.0" ];
      expected = [ true false ];
    };
    blackwell-begins-with-12-8 = {
      expr = map (cuda: capability.inCuda cuda "10.0") [ "12.6" "12.8" "13.0" ];
      expected = [ false true true ];
    };
    thor-was-renumbered = {
      expr = map (c: capability.inCuda "13.0" c) [ "10.1" "11.0" ];
      expected = [ false true ];
    };
    unknown-is-not-in-it = {
      expr = capability.inCuda "12.9" "9.9";
      expected = false;
    };
  };

  "capability.ofCuda" = {
    is-ascending = {
      expr = capability.ofCuda "13.0";
      expected = [ "7.5" "8.0" "8.6" "8.7" "8.9" "9.0" "10.0" "10.3" "11.0" "12.0" "12.1" ];
    };
    has-every-variant = {
      expr = builtins.all (v: builtins.elem v.capability (capability.ofCuda default.cuda)) (
        builtins.attrValues variants
      );
      expected = true;
    };
  };

  "capability.runs" = {
    same = {
      expr = capability.runs "8.9" "8.9";
      expected = true;
    };
    older-of-the-same-major = {
      expr = capability.runs "8.9" "8.6";
      expected = true;
    };
    not-newer = {
      expr = capability.runs "8.6" "8.9";
      expected = false;
    };
    not-between-a-tegra-and-others = {
      expr = [ (capability.runs "8.7" "8.6") (capability.runs "8.9" "8.7") (capability.runs "8.7" "8.7") ];
      expected = [ false false true ];
    };
    not-another-major = {
      expr = capability.runs "10.0" "9.0";
      expected = false;
    };
  };

  "capability.isTegra" = {
    orin-and-thor-are-and-no-card-is = {
      expr = map capability.isTegra [ "8.7" "11.0" "8.6" "12.1" ];
      expected = [ true true false false ];
    };
  };

  "capability.ofTorchWheel" = {
    are-those-of-the-wheel = {
      expr = capability.ofTorchWheel "2.9.1";
      expected = [ "7.0" "7.5" "8.0" "8.6" "9.0" "10.0" "12.0" ];
    };
    of-an-unknown-version-are-unknown = {
      expr = capability.ofTorchWheel "9.9.9";
      expected = null;
    };
  };

  "capability.inTorchWheel" = {
    ada-by-way-of-ampere = {
      expr = capability.inTorchWheel "2.9.1" "8.9";
      expected = true;
    };
    not-pascal = {
      expr = capability.inTorchWheel "2.9.1" "6.1";
      expected = false;
    };
    unknown-version-is-not-refused = {
      expr = capability.inTorchWheel "9.9.9" "6.1";
      expected = true;
    };
  };

  "capability.inVllm" = {
    from-volta-on = {
      expr = map capability.inVllm [ "6.1" "7.0" "12.1" ];
      expected = [ false true true ];
    };
  };

  "names.full" = {
    of-the-default-release = {
      expr = names.full default variants.sm90;
      expected = "vllm-python312-cuda12_9-sm90";
    };
    of-arm = {
      expr = names.full default variants.sm100-arm64;
      expected = "vllm-python312-cuda12_9-sm100-arm64";
    };
    of-another-stack = {
      expr = names.full { python = "3.13"; cuda = "13.0"; } variants.sm75;
      expected = "vllm-python313-cuda13_0-sm75";
    };
  };

  "names.parse" = {
    short = {
      expr = (names.parse "sm90").short;
      expected = "sm90";
    };
    full-is-the-inverse-of-full = {
      expr = map (v: (names.parse (names.full default v)).short) (builtins.attrValues variants);
      expected = builtins.attrNames variants;
    };
    unknown-is-answered-with-all = {
      expr = names.parse "sm91";
      expectedError = "there is no variant \"sm91\": sm100, sm100-arm64, sm120, sm70, sm75, sm80, sm86, sm89, sm90, sm90-arm64 are declared in variants.toml";
    };
    unknown-full-name-too = {
      expr = names.parse "vllm-python312-cuda12_9-sm120-arm64";
      expectedError = "there is no variant \"vllm-python312-cuda12_9-sm120-arm64\": sm100, sm100-arm64, sm120, sm70, sm75, sm80, sm86, sm89, sm90, sm90-arm64 are declared in variants.toml";
    };
  };

  "plan" = {
    of-a-name = {
      expr = builtins.removeAttrs (planned { }) [ "release" "gpus" ];
      expected = {
        name = "vllm-python312-cuda12_9-sm90";
        storeName = "python3.12-vllm-python312-cuda12_9-sm90-0.13.0";
        description = "vLLM 0.13.0 for Hopper, SM 9.0, CUDA 12.9: H100, H200, H800, H20";
        short = "sm90";
        system = "x86_64-linux";
        capability = "9.0";
        capabilities = [ "9.0" ];
        architecture = "Hopper";
        ptx = false;
        slim = false;
        torch = {
          from = "wheel";
          wheel = null;
        };
      };
    };
    of-ones-own-sm = {
      expr =
        let
          own = planned { variant.capability = "12.1"; };
        in
        [ own.name own.capabilities ];
      expected = [ "vllm-python312-cuda12_9-sm121" [ "12.1" ] ];
    };
    of-ones-own-on-arm = {
      expr = (plan { system = "aarch64-linux"; variant.capability = "sm121"; }).short;
      expected = "sm121-arm64";
    };
    with-another-cuda = {
      expr = (planned { release.cuda = "13.0"; }).name;
      expected = "vllm-python312-cuda13_0-sm90";
    };
    of-a-named-release = {
      expr = (planned { release = "0.11.2"; }).release.name;
      expected = "0.11.2";
    };
    with-more-capabilities = {
      expr = (planned { variant = "sm100"; extraCapabilities = [ "sm103" ]; }).capabilities;
      expected = [ "10.0" "10.3" ];
    };
    on-arm-builds-torch-from-source = {
      expr = (plan { system = "aarch64-linux"; variant = "sm90-arm64"; }).torch;
      expected.from = "source";
    };
    on-arm-takes-a-wheel-that-is-given = {
      expr = (plan {
        system = "aarch64-linux";
        variant = "sm90-arm64";
        torch = { url = "u"; hash = "h"; };
      }).torch;
      expected = {
        from = "wheel";
        wheel = { url = "u"; hash = "h"; };
      };
    };
    refuses-a-wheel-that-nobody-pinned = {
      expr = plan { system = "aarch64-linux"; variant = "sm90-arm64"; torch = "wheel"; };
      expectedError = "no CUDA wheel of torch 2.9.1 is pinned for aarch64-linux: give torch = { url = …; hash = …; }, pin one in nix/torch-wheels.nix, or leave torch out to build it from source";
    };
    refuses-another-word-for-torch = {
      expr = planned { torch = "nightly"; };
      expectedError = "torch is \"wheel\", \"source\" or { url, hash }, not \"nightly\"";
    };
    refuses-a-system-without-the-variant = {
      expr = planned { variant = "sm90-arm64"; };
      expectedError = "sm90-arm64 is built on aarch64-linux, not on x86_64-linux: build it there, or here with a builder of that system: .#packages.aarch64-linux.sm90-arm64";
    };
    refuses-what-cuda-does-not-compile-for = {
      expr = planned { variant = "sm70"; release.cuda = "13.0"; };
      expectedError = "CUDA 13.0 does not compile for 7.0: it does for 7.5, 8.0, 8.6, 8.7, 8.9, 9.0, 10.0, 10.3, 11.0, 12.0, 12.1";
    };
    refuses-one-of-several-capabilities = {
      expr = planned { extraCapabilities = [ "11.0" ]; };
      expectedError = "CUDA 12.9 does not compile for 11.0: it does for 5.0, 5.2, 6.0, 6.1, 7.0, 7.2, 7.5, 8.0, 8.6, 8.7, 8.9, 9.0, 10.0, 10.1, 10.3, 12.0, 12.1";
    };
    refuses-jetson = {
      expr = plan { system = "aarch64-linux"; variant.capability = "8.7"; torch = "source"; };
      expectedError = "no variant is made for 8.7: an embedded SoC (Jetson, DRIVE) has the CUDA and the driver of JetPack, not those of nixpkgs";
    };
    refuses-jetson-beside-another-capability = {
      expr = planned { extraCapabilities = [ "7.2" "8.7" ]; };
      expectedError = "no variant is made for 7.2, 8.7: an embedded SoC (Jetson, DRIVE) has the CUDA and the driver of JetPack, not those of nixpkgs";
    };
    refuses-what-vllm-has-no-kernels-for = {
      expr = planned { variant.capability = "6.1"; };
      expectedError = "vLLM 0.13.0 has no kernels for 6.1: the oldest capability is 7.0";
    };
    refuses-an-unknown-release = {
      expr = planned { release = "0.12.0"; };
      expectedError = "there is no release \"0.12.0\": 0.11.2, 0.13.0 are declared in variants.toml";
    };
    refuses-an-unknown-variant = {
      expr = planned { variant = "sm85"; };
      expectedError = "there is no variant \"sm85\": sm100, sm100-arm64, sm120, sm70, sm75, sm80, sm86, sm89, sm90, sm90-arm64 are declared in variants.toml";
    };
  };

  "mends" = {
    are-named-in-order = {
      expr = map (mend: mend.name) library.mends;
      expected = [
        "cuda-version"
        "cudnn-of-the-wheel"
        "cudnn-nvrtc"
        "torch-wheel"
        "torch-wheel-cmake"
        "torch-wheel-nvshmem"
        "bitsandbytes"
      ];
    };
    are-overlays-after-a-plan = {
      expr = map (mend: builtins.isFunction (mend (planned { }) { })) library.mends;
      expected = map (_: true) library.mends;
    };
  };

  "mkVariant" = {
    refuses-before-it-looks-at-nixpkgs = {
      expr = library.mkVariant (sm90 // { nixpkgs = stub; variant = "sm09"; });
      expectedError = "there is no variant \"sm09\": sm100, sm100-arm64, sm120, sm70, sm75, sm80, sm86, sm89, sm90, sm90-arm64 are declared in variants.toml";
    };
    looks-at-nixpkgs-only-then = {
      expr = library.mkVariant (sm90 // { nixpkgs = stub; });
      expectedError = "a nixpkgs was looked at";
    };
  };

  "variants" = {
    have-short-and-full-names-and-need-no-nixpkgs = {
      expr = builtins.length (
        builtins.attrNames (
          library.variants {
            system = "x86_64-linux";
            release = default;
            nixpkgs = stub;
          }
        )
      );
      expected = 20;
    };
  };

  "packageSet" = {
    imports-what-it-is-given = {
      expr =
        let
          set = library.packageSet {
            nixpkgs = builtins.toFile "stub.nix" "{ system, config, overlays }: { inherit system config; count = builtins.length overlays; }";
            plan = planned { ptx = true; };
            mends = [ ];
            overlays = [ (_: _: { }) ];
          };
        in
        set;
      expected = {
        system = "x86_64-linux";
        config = {
          allowUnfree = true;
          cudaSupport = true;
          cudaCapabilities = [ "9.0" ];
          cudaForwardCompat = true;
        };
        count = 1;
      };
    };
  };

  "closure" =
    let
      problems =
        cmakeFlags: capabilities:
        let
          cc = { version = "14"; isGNU = true; };
        in
        (library.closure {
          inherit capabilities;
          lib = {
            inherit (builtins) filter length;
            concatStringsSep = builtins.concatStringsSep;
            last = list: builtins.elemAt list (builtins.length list - 1);
            optional = condition: value: if condition then [ value ] else [ ];
            unique = list: list;
          };
          package = {
            inherit cmakeFlags;
            outPath = "/p";
            name = "p";
            stdenv = { inherit cc; };
          };
          cudaPackages.backendStdenv = { inherit cc; };
        }).problems;
      flag = list: [ "-DTORCH_CUDA_ARCH_LIST:STRING=${list}" ];
    in
    {
      of-one-package-has-no-problems = {
        expr = [
          (problems (flag "9.0") [ "9.0" ])
          (problems (flag "9.0+PTX") [ "9.0" ])
          (problems [ "-DOTHER=1" "-DTORCH_CUDA_ARCH_LIST=10.0;10.3+PTX" ] [ "10.0" "10.3" ])
        ];
        expected = [ [ ] [ ] [ ] ];
      };
      says-what-vllm-is-compiled-for = {
        expr = [
          (problems (flag "10.0") [ "10.0" "10.3" ])
          (problems (flag "9.0;10.0") [ "9.0" ])
          (problems [ ] [ "9.0" ])
        ];
        expected = [
          [ "vLLM is compiled for 10.0, not for 10.0, 10.3" ]
          [ "vLLM is compiled for 9.0, 10.0, not for 9.0" ]
          [ "vLLM is compiled for nobody knows which capabilities: no TORCH_CUDA_ARCH_LIST in its cmakeFlags" ]
        ];
      };
    };

  "systems" = {
    are-those-of-the-variants = {
      expr = library.systems;
      expected = [ "aarch64-linux" "x86_64-linux" ];
    };
  };

  "namesElsewhere" = {
    are-both-names = {
      expr = library.namesElsewhere default "x86_64-linux";
      expected = [
        "sm100-arm64"
        "vllm-python312-cuda12_9-sm100-arm64"
        "sm90-arm64"
        "vllm-python312-cuda12_9-sm90-arm64"
      ];
    };
  };

  "inputName" = {
    of-the-default-release-is-plain = {
      expr = map library.inputName (builtins.attrValues releases);
      expected = [ "nixpkgs-0_11_2" "nixpkgs" ];
    };
  };

  "inputOf" = {
    finds-it = {
      expr = library.inputOf { nixpkgs-0_11_2 = "old"; } releases."0.11.2";
      expected = "old";
    };
    says-which-line-is-missing = {
      expr = library.inputOf { } releases."0.11.2";
      expectedError = "release 0.11.2 has no flake input: add inputs.nixpkgs-0_11_2.url = \"github:NixOS/nixpkgs/1306659b587dc277866c7b69eb97e5f07864d8c4\" to flake.nix";
    };
  };
}
