"""Read images, volumes and label files, and resize and scale their arrays."""
