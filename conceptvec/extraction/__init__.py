"""Stage 1: value vectors projected onto the vocabulary, and the activations of their neurons."""
