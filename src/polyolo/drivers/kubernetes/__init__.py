"""Runtimes on Kubernetes, one namespace for each tenant.

`render` turns one RuntimeSpec into objects, purely; `compare` says what is missing of them in a
cluster; `mirror` knows what is there; `cluster` talks to the API server; `driver` does.
"""
