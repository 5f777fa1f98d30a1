"""The routes of the control API: each asks, calls one function of the service, and answers."""
