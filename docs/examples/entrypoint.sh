#!/bin/sh
# A container's entry: audit the environment for the card that is here, then serve. Exit code 5 stops it.
# Where the image is built, `vllm-variants audit /opt/venv --remember` makes this a matter of a second.
set -e
vllm-variants audit "${VLLM_ENVIRONMENT:-/opt/venv}" --fail-on missing --fail-on driver >&2
exec vllm serve "$@"
