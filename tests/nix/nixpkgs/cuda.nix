# The CUDA package sets: versioned scopes and their aliases, capabilities with their ranges, the
# compiler that nvcc takes, and cuDNN's refusal of Volta. Upstream: pkgs/development/cuda-modules.
final: prev:
let
  inherit (prev) lib;

  # capability -> first and last CUDA version that compiles for it
  capabilities = {
    "6.1" = [ "8.0" "12.9" ];
    "7.0" = [ "9.0" "12.9" ];
    "7.5" = [ "10.0" null ];
    "8.0" = [ "11.2" null ];
    "8.6" = [ "11.2" null ];
    "8.9" = [ "11.8" null ];
    "9.0" = [ "11.8" null ];
    "10.0" = [ "12.7" null ];
    "10.3" = [ "12.9" null ];
    "11.0" = [ "13.0" null ];
    "12.0" = [ "12.8" null ];
    "12.1" = [ "12.9" null ];
  };
  standard = [ "7.5" "8.0" "8.6" "8.9" "9.0" "10.0" "12.0" ];

  makeCuda =
    { version, manifests }:
    lib.makeScope final.newScope (
      self:
      let
        within =
          capability:
          let
            # An unknown capability ends here: attribute '"9.0+PTX"' missing.
            range = capabilities.${capability};
            newest = lib.last range;
          in
          lib.versionAtLeast version (lib.head range)
          && (newest == null || lib.versionAtLeast newest version);
        asked = final.config.cudaCapabilities or [ ];
        chosen = if asked == [ ] then standard else asked;
        refused = lib.filter (c: !(within c)) chosen;

        redist =
          pname: redistVersion: attrs:
          final.stdenv.mkDerivation (
            finalAttrs:
            {
              inherit pname;
              version = redistVersion;
              name = "cuda${version}-${pname}-${redistVersion}";
              cudaVersion = version;
              buildPhase = ''
                mkdir -p "$out/lib" "$out/nix-support"
                echo "$cudaVersion ''${appendRunpaths:-}" > "$out/lib/lib$pname.so"
              '';
            }
            // attrs finalAttrs
            // {
              meta = {
                unfree = true;
                platforms = [ "x86_64-linux" "aarch64-linux" ];
              }
              // (attrs finalAttrs).meta or { };
            }
          );
        plain = pname: redist pname manifests.cuda.${pname} (_: { });
      in
      {
        cudaMajorMinorVersion = version;
        cudaAtLeast = lib.versionAtLeast version;
        cudaOlder = lib.versionOlder version;
        inherit manifests;

        flags = {
          cudaCapabilities = chosen;
          cudaForwardCompat = final.config.cudaForwardCompat or true;
          cmakeCudaArchitecturesString = lib.concatMapStringsSep ";" (
            lib.replaceStrings [ "." ] [ "" ]
          ) chosen;
          gencode =
            map (c: "sm_${lib.replaceStrings [ "." ] [ "" ] c}") chosen
            ++ lib.optional self.flags.cudaForwardCompat "compute_${
              lib.replaceStrings [ "." ] [ "" ] (lib.last chosen)
            }";
        };

        # A stdenv of its own, whose compiler nvcc takes.
        backendStdenv =
          lib.throwIf (refused != [ ])
            "CUDA ${version} does not support capabilities ${builtins.toJSON refused}"
            (final.stdenvWith final.gcc14)
          // {
            inherit (self.flags) cudaCapabilities;
          };

        cuda_nvcc = plain "cuda_nvcc" // {
          meta.mainProgram = "nvcc";
        };
        cuda_nvrtc = plain "cuda_nvrtc";
        cuda_cudart = plain "cuda_cudart";
        libcublas = plain "libcublas";
        libcufft = plain "libcufft";
        libcurand = plain "libcurand";
        libcusolver = plain "libcusolver";
        libcusparse = plain "libcusparse";
        libcusparse_lt = plain "libcusparse_lt";
        cusparselt = self.libcusparse_lt;
        libnvshmem = plain "libnvshmem";
        nccl = plain "nccl";

        # 9.12 dropped Volta; which one this is, the manifests say. Like upstream at the pin, it
        # does not look for nvrtc.
        cudnn = self.callPackage (
          { backendStdenv, libcublas }:
          redist "cudnn" manifests.cudnn.cudnn.version (finalAttrs: {
            buildInputs = [ libcublas ];
            appendRunpaths = [ ];
            url = manifests.cudnn.cudnn.${
              if final.stdenv.hostPlatform.isAarch64 then "linux-sbsa" else "linux-x86_64"
            }.cuda12.relative_path;
            meta.platformAssertions = [
              {
                message = "cuDNN releases since 9.12 (found ${finalAttrs.version}) support CUDA compute capabilities 7.5 and newer (found ${builtins.toJSON backendStdenv.cudaCapabilities})";
                assertion =
                  lib.versionOlder finalAttrs.version "9.12"
                  || lib.all (c: lib.versionAtLeast c "7.5") backendStdenv.cudaCapabilities;
              }
            ];
          })
        ) { };
      }
    );

  cudnn_9_13_0 = {
    version = "9.13.0.50";
    linux-x86_64.cuda12.relative_path = "cudnn/linux-x86_64/cudnn-linux-x86_64-9.13.0.50_cuda12-archive.tar.xz";
    linux-sbsa.cuda12.relative_path = "cudnn/linux-sbsa/cudnn-linux-sbsa-9.13.0.50_cuda12-archive.tar.xz";
  };
  set =
    version: cudart:
    lib.makeOverridable makeCuda {
      inherit version;
      manifests = {
        cuda = {
          cuda_nvcc = cudart;
          cuda_nvrtc = cudart;
          cuda_cudart = cudart;
          libcublas = "${version}.1.4";
          libcufft = "11.4.1.4";
          libcurand = "10.3.10.19";
          libcusolver = "11.7.5.82";
          libcusparse = "12.5.10.65";
          libcusparse_lt = "0.7.1";
          libnvshmem = "3.3.20";
          nccl = "2.28.7";
        };
        cudnn.cudnn = cudnn_9_13_0;
      };
    };
in
{
  cudaPackages_12_8 = set "12.8" "12.8.90";
  cudaPackages_12_9 = set "12.9" "12.9.86";
  cudaPackages_13_0 = set "13.0" "13.0.88";
  cudaPackages_12 = final.cudaPackages_12_8;
  cudaPackages = final.cudaPackages_12;
}
