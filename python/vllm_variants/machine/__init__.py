"""What this machine has: GPUs, memory, interpreters."""
