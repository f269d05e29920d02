"""What keeps checks off NVLink multicast, and what lets processes of one host find each other.

Multicast (NVLink SHARP) objects belong to the fabric and not to a process: a program that ends badly while it
has some can leave a shared host's cards unusable. No kernel of a result is served by it alone, so no
check may use it, whatever the environment says.
"""

from __future__ import annotations

MULTICAST_OFF = {
    "NCCL_NVLS_ENABLE": "0",  # NCCL's environment variables
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",  # torch/csrc/distributed/c10d/symm_mem
    "NVSHMEM_DISABLE_NVLS": "1",  # NVSHMEM's environment variables
    # vLLM's envs.py: symmetric memory, and FlashInfer's all-reduce in later releases, which is built on it
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "VLLM_ALLREDUCE_USE_FLASHINFER": "0",
    "VLLM_USE_NCCL_SYMM_MEM": "0",
}
# Rendezvous and bootstrap need the loopback interface alone, and no host name that resolves.
ONE_HOST = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
