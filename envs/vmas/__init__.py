"""VMAS, batched by PyTorch."""
