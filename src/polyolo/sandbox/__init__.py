"""Runs what is not trusted where it can do no harm: a tenant's runtime, a look into its upload.

`confinement` says what a process may, `layers` what this host can enforce of it, `job` runs a
throw-away process, `command` gives the command line that the process driver starts. Everything
here needs the standard library only: the first code inside a sandbox is `inner`, and it is there
for its speed.
"""
