# The packages around vLLM, each with the reads that make a careless swap of torch fail, loudly
# or silently. Leaves that nothing here depends on are two words: a name and a version.
{ vllm, behaviour }:
self:
_:
let
  inherit (self) callPackage buildPythonPackage;
  lib = self.pkgs.lib;

  leaf = pname: version: buildPythonPackage { inherit pname version; pyproject = true; };
  absent =
    pname: version:
    buildPythonPackage { inherit pname version; pyproject = true; installPhase = "installMetadata"; };
  wheel =
    pname: version: attrs:
    buildPythonPackage ({ inherit pname version; format = "wheel"; } // attrs);
in
{
  # Built from source, for the set's capabilities; carries what its consumers read.
  torch = callPackage (
    { config, cudaPackages, magma, triton }:
    let
      inherit (cudaPackages) backendStdenv flags;
      # Its own list: a capability outside it is left out in silence, unless nothing remains.
      listed = [ "7.0" "7.2" "7.5" "8.0" "8.6" "8.7" "8.9" "9.0" "10.0" "10.1" "12.0" ];
      supported = lib.intersectLists flags.cudaCapabilities listed;
    in
    buildPythonPackage.override { stdenv = backendStdenv; } (finalAttrs: {
      pname = "torch";
      version = "2.9.1";
      pyproject = true;
      dependencies = [ triton ];
      buildInputs = [ cudaPackages.cudnn cudaPackages.nccl magma ];
      env.TORCH_CUDA_ARCH_LIST = lib.concatStringsSep ";" (
        lib.throwIf (supported == [ ])
          "No supported GPU targets specified. Requested GPU targets: ${lib.concatStringsSep ", " flags.cudaCapabilities}"
          supported
      );
      passthru = {
        cudaSupport = config.cudaSupport or false;
        rocmSupport = false;
        inherit cudaPackages;
        cudaCapabilities = supported;
        stdenv = backendStdenv;
      };
    })
  ) { };

  # The published wheel. None of the five attributes above; a stdenv of its own.
  torch-bin = callPackage (
    { stdenv, fetchurl, cudaPackages, triton }:
    let
      url =
        if stdenv.hostPlatform.isAarch64 then
          "https://wheels.example/whl/cpu/torch-2.9.1%2Bcpu-cp312-cp312-manylinux_2_28_aarch64.whl"
        else
          "https://wheels.example/whl/cu128/torch-2.9.1%2Bcu128-cp312-cp312-manylinux_2_28_x86_64.whl";
    in
    wheel "torch" "2.9.1" {
      src = fetchurl {
        name = "torch-2.9.1-cp312-cp312-linux.whl";
        inherit url;
        hash = "sha256-fLQBj0zmi2H9Pvh9wcTKUgcxx7WyAONgrUe2EteEQGM=";
      };
      dependencies = [ triton ];
      buildInputs = [ cudaPackages.cudnn cudaPackages.nccl cudaPackages.cuda_cudart ];
      # autoPatchelf: libtorch_nvshmem.so needs a library that the wheel does not hold.
      buildPhase = ''
        case " $buildInputs " in
          *-libnvshmem-*) ;;
          *) echo "error: auto-patchelf could not satisfy dependency libnvshmem_host.so.3" >&2; exit 1 ;;
        esac
        cmake=$out/lib/python3.12/site-packages/torch/share/cmake/Caffe2
        mkdir -p "$cmake/public"
        {
          echo 'set(CUDAToolkit_ROOT "''${CUDA_TOOLKIT_ROOT_DIR}")'
          echo 'message(FATAL_ERROR "Found two conflicting CUDA versions:"'
        } > "$cmake/public/cuda.cmake"
        : > "$cmake/FindCUDAToolkit.cmake"
      '';
    }
  ) { triton = self.triton-bin; };

  triton = leaf "triton" "3.5.1";
  triton-bin = wheel "triton" "3.5.1" { };

  torchvision = callPackage (
    { torch }: buildPythonPackage { pname = "torchvision"; version = "0.24.1"; pyproject = true; dependencies = [ torch ]; }
  ) { };
  torchaudio = callPackage (
    { torch }:
    buildPythonPackage.override { inherit (torch) stdenv; } {
      pname = "torchaudio";
      version = "2.9.1";
      pyproject = true;
      dependencies = [ torch ];
      env.TORCH_CUDA_ARCH_LIST = lib.concatStringsSep ";" torch.cudaCapabilities;
    }
  ) { };
  # The -bin companions take the argument torch-bin.
  torchvision-bin = callPackage ({ torch-bin }: wheel "torchvision" "0.24.1" { dependencies = [ torch-bin ]; }) { };
  torchaudio-bin = callPackage ({ torch-bin }: wheel "torchaudio" "2.9.1" { dependencies = [ torch-bin ]; }) { };

  # Consumers, each with reads of its own from torch.
  xformers = callPackage (
    { torch }:
    buildPythonPackage.override { inherit (torch) stdenv; } {
      pname = "xformers";
      version = "0.0.33";
      pyproject = true;
      dependencies = [ torch ];
      buildInputs = lib.optionals torch.cudaSupport [ torch.cudaPackages.cuda_cudart ];
      env = lib.optionalAttrs torch.cudaSupport {
        TORCH_CUDA_ARCH_LIST = lib.concatStringsSep ";" torch.cudaCapabilities;
      };
    }
  ) { };
  flashinfer = callPackage (
    { torch }:
    buildPythonPackage {
      pname = "flashinfer";
      version = "0.5.3";
      pyproject = true;
      dependencies = [ torch ];
      nativeBuildInputs = [ torch.cudaPackages.cuda_nvcc ];
      buildInputs = [ torch.cudaPackages.cuda_cudart torch.cudaPackages.libcublas ];
      env.FLASHINFER_CUDA_ARCH_LIST = lib.concatStringsSep " " torch.cudaCapabilities;
    }
  ) { };
  # Ignores the capabilities of the set: 19 architectures, which is one too many for 12.9's CCCL.
  # Its CUDA is a join of many.
  bitsandbytes = callPackage (
    { torch, symlinkJoin }:
    buildPythonPackage {
      pname = "bitsandbytes";
      version = "0.48.2";
      pyproject = true;
      dependencies = [ torch ];
      nativeBuildInputs = [ torch.cudaPackages.cuda_nvcc ];
      buildInputs = [
        (symlinkJoin {
          name = "cuda-redist";
          paths = [ torch.cudaPackages.cuda_cudart torch.cudaPackages.libcublas ];
        })
      ];
      cmakeFlags = [ (lib.cmakeFeature "COMPUTE_BACKEND" (if torch.cudaSupport then "cuda" else "cpu")) ];
      buildPhase = ''
        case " $cmakeFlags " in
          *" -DCOMPUTE_CAPABILITY="*) ;;
          *) echo "error: _CCCL_PP_SPLICE_WITH_IMPL20 was not declared (19 architectures)" >&2; exit 1 ;;
        esac
      '';
    }
  ) { };
  xgrammar = callPackage (
    { torch, triton }: buildPythonPackage { pname = "xgrammar"; version = "0.1.27"; pyproject = true; dependencies = [ torch triton ]; }
  ) { };

  vllm = callPackage ./vllm.nix { version = vllm; inherit behaviour; };

  # What the project's own command line needs. Metadata only: the modules are the host Python's.
  cyclonedx-python-lib = absent "cyclonedx-python-lib" "11.6.0";
  hatchling = absent "hatchling" "1.28.0";
  jinja2 = absent "jinja2" "3.1.6";
  lz4 = absent "lz4" "4.4.4";
  nvidia-ml-py = absent "nvidia-ml-py" "13.590.44";
  packaging = absent "packaging" "25.0";
  pip = absent "pip" "25.3";
  pyelftools = absent "pyelftools" "0.32";
  rich = absent "rich" "14.2.0";
  toml = absent "toml" "0.10.2";
  typer = absent "typer" "0.20.1";
  uv = absent "uv" "0.9.26";
  zstandard = absent "zstandard" "0.25.0";
  pytest = absent "pytest" "8.4.2";
}
