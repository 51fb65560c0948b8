"""The model: files, device and precision, value vectors and vocabulary, the forward pass."""
