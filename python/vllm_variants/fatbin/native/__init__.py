"""Compile PTX ahead of time: what the driver would compile at first use becomes a cubin in its place.

From text to file: `ptx` (what a PTX asks for), `compiler` (ptxas), `queue` (many at once, with
`schedule` for what is pure in it), `cache` (cubins that are kept), `cubin` (is it what the PTX
asked for), `image` (how it is stored), `plan` and `library` (which containers of a library, and
what they hold afterwards), `proof` (the new file against the old one).
"""
