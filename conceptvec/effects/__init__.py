"""Running text, and what every neuron does there for the words of every concept."""
