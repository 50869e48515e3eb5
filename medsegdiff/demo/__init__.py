"""The demo: synthetic images, every installed backend trained, sampled and scored, one table and one picture."""
