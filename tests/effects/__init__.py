"""Tests of the running text and the effects in it."""
