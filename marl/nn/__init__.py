"""Networks and the normalisation of what they read and predict."""
