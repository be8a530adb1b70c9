"""JaxMARL's environments, batched by JAX."""
