# vLLM: its defaults come from torch, and its compiler too. The build prints what ninja prints and
# leaves a `vllm` program and one shared library that names the architectures it was built for.
{
  lib,
  buildPythonPackage,
  python,
  cudaPackages,
  torch,
  torchvision,
  torchaudio,
  xformers,
  flashinfer,
  xgrammar,
  bitsandbytes,
  nvidia-ml-py,
  cudaSupport ? torch.cudaSupport,
  rocmSupport ? torch.rocmSupport,
  gpuTargets ? [ ],
  version,
  behaviour,
}:
let
  known = [ "7.0" "7.5" "8.0" "8.6" "8.9" "9.0" "10.0" "10.3" "12.0" "12.1" ];
  supported = lib.intersectLists cudaPackages.flags.cudaCapabilities known;
  targets = lib.concatStringsSep ";" (if gpuTargets != [ ] then gpuTargets else supported);
in
buildPythonPackage.override { inherit (torch) stdenv; } (finalAttrs: {
  pname = "vllm";
  inherit version;
  pyproject = true;

  nativeBuildInputs = lib.optionals cudaSupport [ cudaPackages.cuda_nvcc ];
  buildInputs = lib.optionals cudaSupport [ cudaPackages.cudnn cudaPackages.nccl cudaPackages.libcublas ];
  dependencies = [
    torch
    torch.stdenv.cc
    torchvision
    torchaudio
    xformers
    xgrammar
    bitsandbytes
  ]
  ++ lib.optionals cudaSupport [ flashinfer nvidia-ml-py ]
  ++ lib.optionals rocmSupport (throw "the model has no ROCm");

  cmakeFlags = [ (lib.cmakeFeature "TORCH_CUDA_ARCH_LIST" targets) ];
  env.VLLM_TARGET_DEVICE = "cuda";

  module = "vllm";
  torchCMake = "${torch}/lib/python3.12/site-packages/torch/share/cmake/Caffe2/public/cuda.cmake";
  inherit targets;
  lines = toString (behaviour.lines or 12);
  seconds = toString (behaviour.seconds or 0);
  failure = behaviour.failures.${targets} or "";
  buildPhase = ''
    if grep -qs FATAL_ERROR "$torchCMake"; then
      echo "CMake Error: Found two conflicting CUDA versions" >&2; exit 1
    fi
    echo "building vllm for $targets with $NIX_BUILD_CORES cores"
    pause=$(awk "BEGIN { print $seconds / $lines }")
    line=0
    while [ "$line" -lt "$lines" ]; do
      line=$((line + 1))
      if [ "$seconds" != 0 ]; then sleep "$pause"; fi
      echo "[$line/$lines] Building CUDA object CMakeFiles/_C.dir/csrc/kernel_$line.cu.o"
      if [ -n "$failure" ] && [ "$line" -ge $((lines / 7)) ]; then
        echo "FAILED: CMakeFiles/_C.dir/csrc/kernel_$line.cu.o" >&2
        echo "$failure" >&2
        echo "ninja: build stopped: subcommand failed." >&2
        exit 1
      fi
    done
  '';
  installPhase = ''
    installModule
    echo "_C for $targets" > "$out/lib/python3.12/site-packages/vllm/_C.abi3.so"
    mkdir -p "$out/bin"
    cat > "$out/bin/vllm" <<EOF
    #!/bin/sh
    exec ${python.interpreter} -c 'import vllm, sys; print("vllm", vllm.__version__, *sys.argv[1:])' "\$@"
    EOF
    chmod +x "$out/bin/vllm"
    echo vllm > "$dist/wheel"
  '';

  meta = {
    description = "High-throughput and memory-efficient inference and serving engine for LLMs";
    homepage = "https://github.com/vllm-project/vllm";
    mainProgram = "vllm";
  };
})
