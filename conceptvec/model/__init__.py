"""The model: its files, device and precision, value vectors and vocabulary, and the forward pass."""
