# The model as it is at the revision that packages vLLM 0.11.2.
args: import ../.. (args // { vllm = "0.11.2"; })
