"""Stage 2: which poles stand for a concept, decided from their tokens."""
