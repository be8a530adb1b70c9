"""JaxMARL's SMAX battles, batched by JAX."""
