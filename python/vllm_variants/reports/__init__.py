"""Reports: what is in a result, an audit or a batch of builds, as one HTML file that needs nothing else.

`document` gathers the facts as JSON (`schemas/report-1.json`); `page` makes the file of them. Nothing is
measured here: every figure is one of a manifest, an audit, a slim report or a run of checks.
"""
