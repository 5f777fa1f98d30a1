"""The only public door: who is asking, where the tenant's runtime is, pass on, count once."""
