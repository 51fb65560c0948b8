"""Stage 3: damage a value vector and measure what the model loses."""
